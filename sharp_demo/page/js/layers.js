// The slider through the layers: which tokens are still there.
// How many tokens a column's picture is about: those that enter the chosen layer, or those that are left.
function entering(tokens) {
  return view.layer === null ? tokens.layers.at(-1) : tokens.layers[view.layer];
}

// The mask as it was when the chosen layer was entered: who left later is still there, without a role.
function enter(parts) {
  const { tokens } = parts.column;
  const size = tokens.rows * tokens.cols;
  const plain = tokens.roles.indexOf("kept");
  if (view.layer === null) parts.shown = parts.mask;
  else if (entering(tokens) === tokens.visual) parts.shown = parts.mask.map(() => plain);
  else parts.shown = parts.mask.map((code, slot) => code || (parts.left[slot] > view.layer ? plain : 0));
  parts.counts = Array.from({ length: tokens.frames }, (_, frame) =>
    parts.shown.subarray(frame * size, (frame + 1) * size).reduce((sum, code) => sum + (code > 0), 0));
}

function layerName() {
  return view.layer === null ? say("layer_end") : say("layer_at", { layer: view.layer });
}

function setLayer(layer) {
  const slider = $(".sd-layer");
  view.layer = layer >= Number(slider.max) ? null : layer;
  slider.value = view.layer === null ? slider.max : view.layer;
  slider.setAttribute("aria-valuetext", layerName());
  setText($(".sd-layer-name"), layerName());
  for (const parts of view.cards.values()) if (ready(parts)) enter(parts);
  drawStrip();
  goTo(view.frame);
}

function drawLayers() {
  const known = [...view.cards.values()].find(ready);
  const slider = $(".sd-layer");
  slider.max = known.column.tokens.layers.length;
  if (view.layer === null) slider.value = slider.max;
  slider.setAttribute("aria-valuetext", layerName());
  setText($(".sd-layer-name"), layerName());
}
