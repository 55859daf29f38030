// The token that is pointed at, in every column at once, and what is known of it.
const KINDS = ["raw", "bias", "debiased"];

function cellAt(parts, event) {
  const { rows, cols } = parts.column.tokens;
  const box = parts.canvas.getBoundingClientRect();
  const at = (value, count) => Math.min(count - 1, Math.max(0, Math.floor(value * count)));
  return { row: at((event.clientY - box.top) / box.height, rows), col: at((event.clientX - box.left) / box.width, cols) };
}

function pointAt(parts, cell) {
  const before = view.probe;
  if (before === cell || (before && cell && before.row === cell.row && before.col === cell.col)) return;
  view.probe = cell;
  for (const other of view.cards.values()) {
    other.probe.setAttribute("aria-live", other === parts && document.activeElement === parts.canvas ? "polite" : "off");
    drawCanvas(other);
    describe(other);
  }
}

function moveCell(parts, event) {
  const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  if (event.ctrlKey || event.altKey || event.metaKey || !parts.column.tokens) return;
  if (event.key === "Escape") {
    view.pinned = false;
    pointAt(parts, null);
  }
  if (!(event.key in steps)) return;
  event.preventDefault();
  event.stopPropagation();
  const { rows, cols } = parts.column.tokens;
  const [down, right] = view.probe ? steps[event.key] : [0, 0];
  const from = view.probe || { row: Math.floor(rows / 2), col: Math.floor(cols / 2) };
  view.pinned = true;
  pointAt(parts, { row: Math.min(rows - 1, Math.max(0, from.row + down)),
    col: Math.min(cols - 1, Math.max(0, from.col + right)) });
}

// Rank 1 is the highest score; by the last score a method computes, which is the one it selects by.
function ranks(parts) {
  if (!parts.ranks) {
    const kind = KINDS.findLast((name) => parts.scores[name]);
    if (!kind) return null;
    parts.ranks = { kind, ...ranking(parts.scores[kind].values) };
  }
  return parts.ranks;
}

// The rank of every value, equal ones sharing the first; 0 for those that are not numbers, which do not count.
function ranking(values) {
  const order = [...values.keys()].filter((slot) => !Number.isNaN(values[slot])).sort((a, b) => values[b] - values[a]);
  const places = new Int32Array(values.length);
  order.forEach((slot, place) => {
    const tied = place && values[order[place - 1]] === values[slot];
    places[slot] = tied ? places[order[place - 1]] : place + 1;
  });
  return { places, count: order.length };
}

// Everything known about the token that is pointed at, from the run's own data.
function factsOf(parts) {
  const tokens = parts.column.tokens;
  const per = tokens.rows * tokens.cols;
  const frame = Math.min(view.frame, tokens.frames - 1);
  const slot = frame * per + view.probe.row * tokens.cols + view.probe.col;
  const target = parts.absorbed.get(slot);
  const rank = ranks(parts);
  const code = parts.mask[slot];
  const scores = {};
  for (const kind of Object.keys(parts.scores)) scores[kind] = parts.scores[kind].values[slot];
  const left = code === 0 ? parts.left[slot] : null;
  return { token: slot, left, frame, row: view.probe.row, col: view.probe.col, time: view.value.clip.timestamps[frame],
    fate: code === 0 && target !== undefined ? "absorbed" : tokens.roles[code], target, scores,
    rank: rank && rank.places[slot] ? rank.places[slot] : null, ranked: rank && rank.count, by: rank && rank.kind };
}

// How many tokens of a frame were kept for which reason, where there is more than one.
function rolesOf(parts, frame) {
  const tokens = parts.column.tokens;
  const per = tokens.rows * tokens.cols;
  const counts = new Map();
  for (const code of parts.shown.subarray(frame * per, (frame + 1) * per)) counts.set(code, (counts.get(code) || 0) + 1);
  counts.delete(0);
  const named = [...counts].map(([code, count]) => [tokens.roles[code], count]);
  const special = named.filter(([role]) => !PLAIN.has(role));
  return special.length ? named.map(([role, count]) => count + " " + (STRINGS.roles[role] || role)).join(", ") : "";
}

function describe(parts) {
  const tokens = parts.column.tokens;
  if (!ready(parts)) return;
  const frame = Math.min(view.frame, tokens.frames - 1);
  const total = tokens.rows * tokens.cols;
  const counted = { frame: frame + 1, kept: parts.counts[frame], total, layer: view.layer, all: entering(tokens),
    visual: tokens.visual };
  const named = { label: parts.column.label, frames: tokens.frames, ...counted };
  const label = say(view.layer === null ? "canvas_label" : "layer_label", named);
  if (parts.label !== label) parts.canvas.setAttribute("aria-label", (parts.label = label));
  for (const name of Object.keys(parts.probe.dataset)) delete parts.probe.dataset[name];
  if (!view.probe) {
    const range = tokens.scores[view.mode];
    let text = say(view.layer === null ? "frame_line" : "layer_line", counted) + "\n" + rolesOf(parts, frame);
    if (view.layer !== null) {
      parts.probe.dataset.entering = entering(tokens);
      const cached = tokens.cached[view.layer];
      parts.probe.dataset.cached = cached;
      if (cached < entering(tokens)) text += "\n" + say("forgotten", { cached });
    }
    if (view.mode !== "kept" && !range) text = say("no_score");
    else if (view.mode !== "kept")
      text = say("colour_line", { low: range.low.toPrecision(2), high: range.high.toPrecision(2) });
    return setText(parts.probe, text);
  }
  const facts = factsOf(parts);
  const { scores, target, ...plain } = facts;
  for (const [name, value] of Object.entries({ ...plain, ...scores, target }))
    if (value !== null && value !== undefined) parts.probe.dataset[name] = value;
  const lines = [say("token_line", { token: facts.token + 1, frame: frame + 1, row: facts.row + 1, col: facts.col + 1,
    time: facts.time.toFixed(2) })];
  let fate = facts.fate === "dropped" ? say("left", { layer: facts.left })
    : facts.fate === "absorbed" || target !== undefined ? say("absorbed_by", { token: target + 1,
      frame: Math.floor(target / total) + 1, row: Math.floor((target % total) / tokens.cols) + 1,
      col: (target % tokens.cols) + 1 })
    : facts.fate === "kept" ? say("kept") : say("kept_as", { role: STRINGS.roles[facts.fate] || facts.fate });
  if (target !== undefined && facts.left !== null) fate = say("left_merged", { fate, layer: facts.left });
  lines[0] += ": " + fate;
  if (facts.rank) lines.push(say("rank", { rank: facts.rank, count: facts.ranked, by: STRINGS.kinds[facts.by] }));
  const known = KINDS.filter((kind) => kind in scores && !Number.isNaN(scores[kind]));
  if (known.length) lines.push(known.map((kind) => STRINGS.scores[kind] + "\u00a0" + scores[kind].toPrecision(3)).join(" · "));
  setText(parts.probe, lines.join("\n"));
}
