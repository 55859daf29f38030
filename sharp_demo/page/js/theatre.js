// The columns of a comparison, put together from the modules before this one. The HTML template is static; everything
// writes with textContent or on canvas, because Gradio expands values inside a template as code.
const $ = (selector, root = element) => root.querySelector(selector);
const view = { value: null, frame: 0, layer: null, mode: "kept", image: null, src: null, timer: null, cards: new Map(), key: "",
  probe: null, pinned: false, moved: false, asks: null, race: 0, timed: "", keyed: false, thumb: 0, clipSource: "", changed: 0 };

function drawLegend() {
  const list = $(".sd-legend");
  list.replaceChildren();
  const roles = new Set();
  let scored = false;
  let absorbed = false;
  for (const parts of view.cards.values()) {
    if (!parts.column.tokens) continue;
    const present = new Set(parts.mask);
    parts.column.tokens.roles.forEach((role, code) => present.has(code) && roles.add(role));
    absorbed = absorbed || parts.absorbed.size > 0;
    scored = scored || Object.keys(parts.scores).length > 0;
  }
  const item = (name, text, className, mark) => {
    const line = make("li", "", text);
    line.dataset.role = name;
    line.prepend(make("span", "sd-swatch " + className, mark));
    list.append(line);
  };
  for (const role of roles)
    item(role, STRINGS.roles[role] || role, role === "dropped" ? "sd-dropped" : "sd-kept", markOf(role));
  if (absorbed) item("absorbed", STRINGS.roles.absorbed, "sd-absorbed", "");
  if (view.value.evidence.some((one) => one.box)) item("evidence", say("evidence"), "sd-evidence", "");
  $(".sd-modes").hidden = !scored;
}

function loadSprite(clip) {
  const src = clip ? clip.sprite.url : null;
  if (src === view.src) return;
  view.src = src;
  view.image = null;
  $(".sd-lost").hidden = true;
  if (!src) return;
  const image = new Image();
  image.onload = async () => {
    const decoded = await createImageBitmap(image); // decoded once, not again for every frame drawn
    if (view.src !== src) return;
    view.image = decoded;
    redraw();
  };
  image.onerror = () => {
    if (view.src !== src) return;
    setText($(".sd-lost"), say("no_picture"));
    $(".sd-lost").hidden = false;
  };
  image.src = src;
}

function redraw() {
  const any = [...view.cards.values()].some(ready);
  $(".sd-bar").hidden = $(".sd-controls").hidden = !any;
  if (!any) play(false);
  else {
    drawTimeline();
    drawLayers();
    drawLegend();
  }
  for (const parts of view.cards.values()) measure(parts);
  for (const parts of view.cards.values()) resize(parts);
  drawStrip();
  if (any) goTo(view.frame);
}

function render() {
  const value = props.value;
  if (!value) return;
  const fresh = !view.value || view.value.run !== value.run;
  if (value.opening && fresh && view.value && view.value.phase !== "idle") return; // a visitor was faster
  view.value = value;
  const over = !["waiting", "running"].includes(value.phase);
  if (over && $(".sd").dataset.phase !== value.phase) focusRun();
  if ($(".sd-message").textContent !== value.message) view.changed = performance.now();
  setText($(".sd-message"), value.message);
  $(".sd-status").dataset.phase = value.phase;
  $(".sd").dataset.phase = value.phase;
  if (fresh) {
    rememberClip(value);
    if (value.query) window.sharpAddress.settings(value.query);
    view.frame = value.frame;
    view.moved = false;
    view.layer = null;
    view.probe = null;
    view.pinned = false;
    view.cards.clear();
    $(".sd-cards").replaceChildren();
    play(false);
    // On a phone the columns are below the inputs, and settings may be far down: bring the columns into view.
    const { top, bottom } = $(".sd-status").getBoundingClientRect();
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (value.phase === "waiting" && (top > window.innerHeight * 0.8 || bottom < 0))
      element.scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "start" });
  }
  for (const column of value.columns) {
    if (!view.cards.has(column.label)) {
      const parts = buildCard(column);
      view.cards.set(column.label, parts);
      $(".sd-cards").append(parts.card);
    }
    updateCard(view.cards.get(column.label), column);
  }
  setText($(".sd-verdict"), value.verdict || "");
  setText($(".sd-question"), value.question || "");
  $(".sd-question").hidden = !value.question;
  markStale();
  const timed = value.run + value.phase;
  if (timed !== view.timed) {
    view.timed = timed;
    endRace();
  }
  tick();
  loadSprite(value.clip);
  const pictures = value.run + "|" + value.columns.map((column) => (column.tokens ? column.label : "")).join("|");
  if (!view.moved) view.frame = value.frame; // until a person moves, the most telling of what is there
  if (fresh || pictures !== view.key) {
    view.key = pictures;
    redraw();
    if (fresh && value.play) playOnce();
  }
}

// What is shown was asked of other inputs than those that stand there now: said at once, and the columns step back. A
// change of several inputs arrives in parts, so it is looked at when they are through.
function markStale() {
  clearTimeout(view.asks);
  view.asks = setTimeout(() => {
    const value = view.value;
    const changed = value && value.phase !== "idle" ? window.sharpInputs?.changed(value.asked) ?? [] : [];
    const names = [...new Set(changed.map((name) => STRINGS.input_names[name] || say("settings")))];
    $(".sd").classList.toggle("sd-old", names.length > 0);
    $(".sd-stale").hidden = !names.length;
    if (names.length) setText($(".sd-stale"), say("stale", { question: value.question, names: names.join(", ") }));
  }, 100);
}

// A button that is switched off loses the focus: who pressed Run or Stop by keyboard finds it on Run again. A mouse's
// press leaves the keys to the frames.
function focusRun() {
  if (!view.keyed) return;
  view.keyed = false;
  setTimeout(() => { // when the button is on again
    const now = document.activeElement;
    if (now === document.body || now.closest("#run, #stop")) document.querySelector("#run")?.focus({ preventScroll: true });
  }, 150);
}

// Seconds since the message last changed, so that a long stage is seen to go on. Not announced: one line a second.
function tick() {
  const since = $(".sd-since");
  const seconds = Math.floor((performance.now() - view.changed) / 1000);
  since.hidden = !view.value || !["waiting", "running"].includes(view.value.phase) || seconds < 1;
  setText(since, since.hidden ? "" : " · " + seconds + " s");
}

function clipSource() {
  const video = document.querySelector("#clip video");
  return video ? video.currentSrc : "";
}

// Only the clip these columns are about moves their frames. A stored result arrives together with its clip, which
// the page may not have put in place yet.
function rememberClip(value) {
  view.clipSource = clipSource();
  if (value.phase !== "waiting" && value.phase !== "running")
    setTimeout(() => {
      if (view.value.run === value.run) view.clipSource = clipSource();
    }, 1000);
}

function label() {
  $(".sd").setAttribute("aria-label", say("section"));
  $(".sd-bar").setAttribute("aria-label", say("controls"));
  $(".sd-frame").setAttribute("aria-label", say("frame"));
  $(".sd-layer").setAttribute("aria-label", say("layer"));
  $(".sd-modes legend").textContent = say("show");
  $(".sd-legend").setAttribute("aria-label", say("legend"));
  $(".sd-keys").textContent = say("keys");
  $(".sd-race-go").textContent = say("race");
  $(".sd-race-go").title = say("race_help");
  $(".sd-help summary").setAttribute("aria-label", say("help"));
  $(".sd-help summary").title = say("help");
  $(".sd-strip h3").textContent = say("strip_title");
  $(".sd-strip .sd-sub").textContent = say("strip_help");
  $(".sd-strip-rows").setAttribute("aria-label", say("strip_title"));
  for (const radio of element.querySelectorAll(".sd-modes input"))
    radio.nextElementSibling.textContent = STRINGS.kinds[radio.value];
}

label();
$(".sd-play").addEventListener("click", toggle);
$(".sd-race-go").addEventListener("click", race);
$(".sd-frame").addEventListener("input", (event) => scrub(Number(event.target.value)));
$(".sd-layer").addEventListener("input", (event) => setLayer(Number(event.target.value)));
const group = "sd-mode-" + Math.random().toString(36).slice(2);
for (const radio of element.querySelectorAll(".sd-modes input")) {
  radio.name = group;
  radio.addEventListener("change", () => {
    view.mode = radio.value;
    redraw();
  });
}
window.addEventListener("keydown", onKey);
for (const type of ["play", "timeupdate", "seeked"]) document.addEventListener(type, onClip, true);
window.addEventListener("sharp:inputs", markStale);
document.addEventListener("click", (event) => {
  if (event.target.closest?.("#run, #stop")) view.keyed = event.detail === 0;
}, true);
window.addEventListener("sharp:picture", () => $(".sd-bar").offsetParent && savePicture());
setInterval(() => {
  for (const parts of view.cards.values()) if (parts.column.status === "running") setText(parts.status, statusText(parts));
}, 100);
setInterval(tick, 1000);
let seen = 0;
new ResizeObserver(([entry]) => {
  if (view.value && entry.contentRect.width !== seen) redraw();
  seen = entry.contentRect.width;
}).observe($(".sd-cards"));
watch("value", render);
render();
