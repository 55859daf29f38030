// Runs once per page. The HTML template is static; everything below writes with textContent or on canvas,
// because Gradio expands values inside a template as code.
const $ = (selector, root = element) => root.querySelector(selector);
const view = { value: null, frame: 0, mode: "kept", image: null, src: null, timer: null, cards: new Map(), key: "" };
const MARKS = { register: "●", filled: "○", merged: "+", grid: "□", dominant: "▲" };
const VIRIDIS = [[68, 1, 84], [70, 50, 126], [54, 92, 141], [39, 127, 142], [31, 161, 135], [74, 193, 109],
  [160, 218, 57], [253, 231, 37]];

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function decode(text) {
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}

function viridis(code) {
  const at = (code / 255) * (VIRIDIS.length - 1);
  const low = Math.min(Math.floor(at), VIRIDIS.length - 2);
  const mix = VIRIDIS[low].map((v, i) => Math.round(v + (VIRIDIS[low + 1][i] - v) * (at - low)));
  return "rgb(" + mix.join(",") + ")";
}

// ---- cards -----------------------------------------------------------------------------------------------------

function buildCard(column) {
  const card = make("article", "sd-card");
  card.style.setProperty("--method", column.color);
  const head = make("header", "sd-head");
  const title = make("h3", "", column.label);
  const status = make("span", "sd-chip");
  head.append(title, status);
  const answer = make("p", "sd-answer");
  answer.setAttribute("aria-live", "polite");
  const note = make("p", "sd-note");
  const picture = make("div", "sd-picture");
  const canvas = make("canvas", "sd-canvas");
  canvas.setAttribute("role", "img");
  const probe = make("p", "sd-probe");
  picture.append(canvas, probe);
  picture.hidden = true;
  const key = make("div", "sd-key");
  const more = make("dl", "sd-figures");
  card.append(head, answer, note, picture, key, more);
  const parts = { card, status, answer, note, picture, canvas, probe, key, more, column, since: 0, mask: null,
    scores: {}, figures: "" };
  canvas.addEventListener("pointermove", (event) => probeCell(parts, event));
  canvas.addEventListener("pointerleave", () => describeFrame(parts));
  return parts;
}

function statusText(parts) {
  const { status, stage } = parts.column;
  if (status !== "running") return stage || status;
  const seconds = (performance.now() - parts.since) / 1000;
  return (stage || "running") + " · " + seconds.toFixed(1) + " s";
}

function updateCard(parts, column) {
  if (column.status === "running" && parts.column.status !== "running") parts.since = performance.now();
  if (column.status === "running" && !parts.since) parts.since = performance.now();
  parts.column = column;
  parts.card.dataset.status = column.status;
  parts.card.dataset.method = column.method;
  setText(parts.status, statusText(parts));
  parts.status.hidden = column.status === "idle";
  const text = column.error || column.answer;
  setText(parts.answer, text || ({ done: "(empty answer)", stopped: "(no answer)", idle: "" }[column.status] ?? "…"));
  parts.answer.classList.toggle("sd-empty", !text);
  setText(parts.note, column.note);
  parts.note.hidden = !column.note;
  const signature = JSON.stringify(column.figures);
  if (signature !== parts.figures) {
    parts.figures = signature;
    drawFigures(parts, column.figures);
  }
  if (!column.tokens) {
    parts.mask = null;
    parts.scores = {};
  } else if (parts.source !== column.tokens.mask) {
    parts.mask = decode(column.tokens.mask);
    parts.scores = {};
    for (const [kind, score] of Object.entries(column.tokens.scores)) parts.scores[kind] = decode(score.codes);
  }
  parts.source = column.tokens ? column.tokens.mask : null;
}

function drawFigures(parts, figures) {
  parts.key.replaceChildren();
  parts.more.replaceChildren();
  for (const figure of figures) {
    if (["kept", "speedup", "flops_ratio"].includes(figure.key)) {
      const box = make("div", "sd-big");
      box.title = figure.help;
      box.append(make("strong", "", figure.value), make("span", "", figure.label));
      parts.key.append(box);
    } else {
      const term = make("dt", "", figure.label);
      term.title = figure.help;
      parts.more.append(term, make("dd", "", figure.value));
    }
  }
}

// ---- drawing ---------------------------------------------------------------------------------------------------

function hatchPattern(context) {
  const tile = document.createElement("canvas");
  tile.width = tile.height = 8;
  const pen = tile.getContext("2d");
  pen.strokeStyle = "rgba(255,255,255,.22)";
  pen.lineWidth = 1.4;
  pen.beginPath();
  for (const x of [-8, 0, 8]) {
    pen.moveTo(x, 8);
    pen.lineTo(x + 8, 0);
  }
  pen.stroke();
  return context.createPattern(tile, "repeat");
}

function sourceRect(clip, frame) {
  const index = clip.shown[frame];
  const row = Math.floor(index / clip.per_row);
  return [(index % clip.per_row) * clip.width, row * clip.height, clip.width, clip.height];
}

function paintFrame(context, frame, x, y, width, height) {
  const clip = view.value.clip;
  context.drawImage(view.image, ...sourceRect(clip, frame), x, y, width, height);
}

function cells(tokens, x, y, width, height, visit) {
  for (let row = 0; row < tokens.rows; row++) {
    for (let col = 0; col < tokens.cols; col++) {
      const left = x + (col * width) / tokens.cols;
      const top = y + (row * height) / tokens.rows;
      visit(row * tokens.cols + col, left, top, width / tokens.cols, height / tokens.rows);
    }
  }
}

function shadeDropped(context, parts, frame, x, y, width, height, hatch) {
  const tokens = parts.column.tokens;
  const base = frame * tokens.rows * tokens.cols;
  const path = new Path2D();
  cells(tokens, x, y, width, height, (cell, left, top, w, h) => {
    if (parts.mask[base + cell] === 0) path.rect(left, top, w + 0.5, h + 0.5);
  });
  context.fillStyle = "rgba(8,10,14,.74)";
  context.fill(path);
  if (hatch) {
    context.fillStyle = hatch;
    context.fill(path);
  }
}

function drawMark(context, mark, x, y, size) {
  context.font = "bold " + Math.round(size) + "px sans-serif";
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.lineWidth = Math.max(2, size / 5);
  context.strokeStyle = "rgba(0,0,0,.8)";
  context.strokeText(mark, x, y);
  context.fillStyle = "#fff";
  context.fillText(mark, x, y);
}

function drawCanvas(parts) {
  const tokens = parts.column.tokens;
  const clip = view.value.clip;
  const ready = Boolean(tokens && clip && view.image);
  parts.picture.hidden = !ready;
  if (!ready) return;
  const canvas = parts.canvas;
  const ratio = window.devicePixelRatio || 1;
  const width = Math.max(160, Math.round(canvas.clientWidth * ratio));
  const height = Math.round((width * clip.height) / clip.width);
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  const context = canvas.getContext("2d");
  const frame = Math.min(view.frame, tokens.frames - 1);
  const base = frame * tokens.rows * tokens.cols;
  paintFrame(context, frame, 0, 0, width, height);
  const cell = Math.min(width / tokens.cols, height / tokens.rows);
  if (view.mode === "kept") {
    shadeDropped(context, parts, frame, 0, 0, width, height, hatchPattern(context));
  } else if (parts.scores[view.mode]) {
    const codes = parts.scores[view.mode];
    context.globalAlpha = 0.78;
    cells(tokens, 0, 0, width, height, (index, left, top, w, h) => {
      context.fillStyle = viridis(codes[base + index]);
      context.fillRect(left, top, w + 0.5, h + 0.5);
    });
    context.globalAlpha = 1;
  } else {
    context.fillStyle = "rgba(8,10,14,.74)";
    context.fillRect(0, 0, width, height);
  }
  const outline = view.mode === "kept" ? "rgba(255,255,255,.55)" : "#fff";
  context.lineWidth = view.mode === "kept" ? ratio : 2 * ratio;
  cells(tokens, 0, 0, width, height, (index, left, top, w, h) => {
    const code = parts.mask[base + index];
    if (code === 0 || (view.mode !== "kept" && !parts.scores[view.mode])) return;
    if (tokens.pruned) {
      context.strokeStyle = outline;
      context.strokeRect(left + 1, top + 1, w - 2, h - 2);
    }
    const mark = MARKS[tokens.roles[code]];
    if (mark && view.mode === "kept") drawMark(context, mark, left + w / 2, top + h / 2, Math.min(cell * 0.5, 22 * ratio));
  });
  describeFrame(parts);
}

function describeFrame(parts) {
  const tokens = parts.column.tokens;
  if (!tokens) return;
  const frame = Math.min(view.frame, tokens.frames - 1);
  const count = tokens.kept[frame];
  const total = tokens.rows * tokens.cols;
  let text = "frame " + (frame + 1) + ": " + count + " of " + total + " tokens kept";
  if (view.mode !== "kept" && !parts.scores[view.mode]) text = "this method computes no such score";
  else if (view.mode !== "kept") {
    const range = tokens.scores[view.mode];
    text = "colour: " + range.low.toPrecision(2) + " (dark) to " + range.high.toPrecision(2) + "; outlined: kept";
  }
  setText(parts.probe, text);
  parts.canvas.setAttribute("aria-label", parts.column.label + ", frame " + (frame + 1) + " of " + tokens.frames + ": "
    + count + " of " + total + " tokens kept");
}

function probeCell(parts, event) {
  const tokens = parts.column.tokens;
  if (!tokens || !parts.mask) return;
  const box = parts.canvas.getBoundingClientRect();
  const col = Math.min(tokens.cols - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * tokens.cols)));
  const row = Math.min(tokens.rows - 1, Math.max(0, Math.floor(((event.clientY - box.top) / box.height) * tokens.rows)));
  const frame = Math.min(view.frame, tokens.frames - 1);
  const slot = frame * tokens.rows * tokens.cols + row * tokens.cols + col;
  const words = ["row " + (row + 1) + ", column " + (col + 1) + ": " + tokens.roles[parts.mask[slot]]];
  for (const [kind, codes] of Object.entries(parts.scores)) {
    const { low, high } = tokens.scores[kind];
    words.push(kind + " ≈ " + (low + (codes[slot] / 255) * (high - low)).toPrecision(2));
  }
  setText(parts.probe, words.join(" · "));
}

// ---- filmstrip -------------------------------------------------------------------------------------------------

function drawStrip() {
  const host = $(".sd-strip");
  const rows = $(".sd-strip-rows");
  const shown = [...view.cards.values()].filter((parts) => parts.mask);
  host.hidden = !(shown.length && view.image);
  if (host.hidden) return rows.replaceChildren();
  const frames = shown[0].column.tokens.frames;
  const clip = view.value.clip;
  const wide = Math.max(rows.clientWidth, 200);
  const thumb = Math.max(34, Math.floor(wide / frames));
  const tall = Math.round((thumb * clip.height) / clip.width);
  const bar = 22;
  const ratio = window.devicePixelRatio || 1;
  rows.replaceChildren();
  const sheet = make("div", "sd-sheet");
  sheet.style.width = thumb * frames + "px";
  rows.append(sheet);
  for (const parts of shown) {
    const tokens = parts.column.tokens;
    const label = make("p", "sd-strip-label", parts.column.label);
    label.style.setProperty("--method", parts.column.color);
    const canvas = make("canvas", "sd-strip-canvas");
    canvas.width = thumb * frames * ratio;
    canvas.height = (tall + bar) * ratio;
    canvas.style.width = thumb * frames + "px";
    canvas.style.height = tall + bar + "px";
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", parts.column.label + ", tokens kept per frame: " + tokens.kept.join(", "));
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const hatch = hatchPattern(context);
    const total = tokens.rows * tokens.cols;
    for (let frame = 0; frame < tokens.frames; frame++) {
      const x = frame * thumb;
      paintFrame(context, frame, x, 0, thumb - 2, tall);
      shadeDropped(context, parts, frame, x, 0, thumb - 2, tall, thumb > 60 ? hatch : null);
      const share = tokens.kept[frame] / total;
      context.fillStyle = "rgba(128,128,128,.25)";
      context.fillRect(x, tall + 3, thumb - 2, 6);
      context.fillStyle = parts.column.color;
      context.fillRect(x, tall + 3, (thumb - 2) * share, 6);
      context.fillStyle = getComputedStyle(element).color;
      context.font = "10px sans-serif";
      context.fillText(thumb > 44 ? Math.round(share * 100) + " %" : String(Math.round(share * 100)), x + 1, tall + 20);
    }
    context.fillStyle = "#ff5d5d";
    for (const [start] of tokens.segments) if (start > 0) context.fillRect(start * thumb - 2, 0, 2, tall + 10);
    canvas.addEventListener("click", (event) => goTo(Math.floor(event.offsetX / thumb)));
    sheet.append(label, canvas);
  }
  const cursor = make("div", "sd-cursor");
  cursor.style.width = thumb - 2 + "px";
  sheet.append(cursor);
  view.thumb = thumb;
  moveCursor();
}

function moveCursor() {
  const cursor = $(".sd-cursor");
  if (cursor) cursor.style.left = view.frame * view.thumb + "px";
}

// ---- frame and mode --------------------------------------------------------------------------------------------

function goTo(frame) {
  const count = frameCount();
  if (!count) return;
  view.frame = Math.max(0, Math.min(count - 1, frame));
  $(".sd-frame").value = view.frame;
  const seconds = view.value.clip.timestamps[view.frame];
  const label = "frame " + (view.frame + 1) + " / " + count + " · " + seconds.toFixed(2) + " s";
  setText($(".sd-time"), label);
  $(".sd-frame").setAttribute("aria-valuetext", label);
  for (const parts of view.cards.values()) drawCanvas(parts);
  moveCursor();
}

function frameCount() {
  return view.value && view.value.clip ? view.value.clip.shown.length : 0;
}

function play(on) {
  clearInterval(view.timer);
  view.timer = on ? setInterval(() => goTo((view.frame + 1) % frameCount()), 350) : null;
  const button = $(".sd-play");
  setText(button, on ? "❚❚" : "▶");
  button.setAttribute("aria-pressed", String(on));
  button.setAttribute("aria-label", on ? "Pause frames" : "Play frames");
}

function drawLegend() {
  const list = $(".sd-legend");
  list.replaceChildren();
  const roles = new Set();
  let scored = false;
  for (const parts of view.cards.values()) {
    if (!parts.column.tokens) continue;
    const present = new Set(parts.mask);
    parts.column.tokens.roles.forEach((role, code) => present.has(code) && roles.add(role));
    scored = scored || Object.keys(parts.scores).length > 0;
  }
  for (const role of roles) {
    const item = make("li", "", role);
    const swatch = make("span", "sd-swatch sd-" + (role === "dropped" ? "dropped" : "kept"), MARKS[role] || "");
    item.prepend(swatch);
    list.append(item);
  }
  $(".sd-modes").hidden = !scored;
}

// ---- value -----------------------------------------------------------------------------------------------------

function loadSprite(clip) {
  const src = clip ? clip.sprite.url : null;
  if (src === view.src) return;
  view.src = src;
  view.image = null;
  if (!src) return;
  const image = new Image();
  image.onload = () => {
    if (view.src !== src) return;
    view.image = image;
    redraw();
  };
  image.src = src;
}

function redraw() {
  const any = [...view.cards.values()].some((parts) => parts.mask) && Boolean(view.image);
  $(".sd-bar").hidden = !any;
  if (!any) play(false);
  else {
    $(".sd-frame").max = frameCount() - 1;
    drawLegend();
  }
  for (const parts of view.cards.values()) drawCanvas(parts);
  drawStrip();
  if (any) goTo(view.frame);
}

function render() {
  const value = props.value;
  if (!value) return;
  const fresh = !view.value || view.value.run !== value.run;
  view.value = value;
  setText($(".sd-status"), value.message);
  $(".sd-status").dataset.phase = value.phase;
  $(".sd").dataset.phase = value.phase;
  if (fresh) {
    view.frame = 0;
    view.cards.clear();
    $(".sd-cards").replaceChildren();
    play(false);
    // On a phone the columns are below the inputs, and settings may be far down: bring the columns into view.
    const { top, bottom } = $(".sd-status").getBoundingClientRect();
    if (value.phase === "waiting" && (top > window.innerHeight * 0.8 || bottom < 0))
      element.scrollIntoView({ behavior: "smooth", block: "start" });
  }
  for (const column of value.columns) {
    if (!view.cards.has(column.label)) {
      const parts = buildCard(column);
      view.cards.set(column.label, parts);
      $(".sd-cards").append(parts.card);
    }
    updateCard(view.cards.get(column.label), column);
  }
  loadSprite(value.clip);
  const pictures = value.run + "|" + value.columns.map((column) => (column.tokens ? column.label : "")).join("|");
  if (fresh || pictures !== view.key) {
    view.key = pictures;
    redraw();
  }
}

$(".sd-play").addEventListener("click", () => play(!view.timer));
$(".sd-frame").addEventListener("input", (event) => {
  play(false);
  goTo(Number(event.target.value));
});
for (const radio of element.querySelectorAll(".sd-modes input")) {
  radio.name = "sd-mode";
  radio.addEventListener("change", () => {
    view.mode = radio.value;
    redraw();
  });
}
window.addEventListener("keydown", (event) => {
  if (!["ArrowLeft", "ArrowRight"].includes(event.key) || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.target.closest("input, textarea, select, video, [role=tab], [role=listbox], [contenteditable]")) return;
  if (!frameCount()) return;
  event.preventDefault();
  play(false);
  goTo(view.frame + (event.key === "ArrowRight" ? 1 : -1));
});
// The columns follow the input clip while it plays.
document.addEventListener("timeupdate", (event) => {
  if (!event.target.closest || !event.target.closest("#clip") || !frameCount()) return;
  const times = view.value.clip.timestamps;
  let nearest = 0;
  times.forEach((time, index) => {
    if (Math.abs(time - event.target.currentTime) < Math.abs(times[nearest] - event.target.currentTime)) nearest = index;
  });
  if (nearest !== view.frame) goTo(nearest);
}, true);
setInterval(() => {
  for (const parts of view.cards.values()) if (parts.column.status === "running") setText(parts.status, statusText(parts));
}, 100);
new ResizeObserver(() => view.value && redraw()).observe($(".sd-cards"));
watch("value", render);
render();
