// Runs once per page, after `const STRINGS = {...};`. The HTML template is static; everything below writes with
// textContent or on canvas, because Gradio expands values inside a template as code.
const $ = (selector, root = element) => root.querySelector(selector);
const view = { value: null, frame: 0, layer: null, mode: "kept", image: null, src: null, timer: null, cards: new Map(), key: "",
  probe: null, pinned: false, thumb: 0, clipSource: "", changed: 0 };
const PLAIN = new Set(["dropped", "kept"]);
const KINDS = ["raw", "bias", "debiased"];
const RAMP = viridisTable([[68, 1, 84], [70, 50, 126], [54, 92, 141], [39, 127, 142], [31, 161, 135], [74, 193, 109],
  [160, 218, 57], [253, 231, 37]]);
const EVIDENCE = "#ffd23f";

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function say(key, values = {}) {
  return STRINGS[key].replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

function bytes(text) {
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}

function viridisTable(stops) {
  return Array.from({ length: 256 }, (_, code) => {
    const at = (code / 255) * (stops.length - 1);
    const low = Math.min(Math.floor(at), stops.length - 2);
    return "rgb(" + stops[low].map((v, i) => Math.round(v + (stops[low + 1][i] - v) * (at - low))).join(",") + ")";
  });
}

function markOf(role) {
  return PLAIN.has(role) ? "" : STRINGS.marks[role] || role.slice(0, 1).toUpperCase();
}

// ---- cards -----------------------------------------------------------------------------------------------------

function buildCard(column) {
  const card = make("article", "sd-card");
  card.style.setProperty("--method", column.color);
  const head = make("header", "sd-head");
  const title = make("h3", "", column.label);
  const status = make("span", "sd-chip");
  head.append(title, status);
  const badge = make("p", "sd-badge");
  const answer = make("p", "sd-answer");
  answer.dir = "auto";
  const sure = make("div", "sd-sure");
  const note = make("details", "sd-note");
  const noteHead = make("summary");
  const noteBody = make("span");
  note.append(noteHead, noteBody);
  const picture = make("div", "sd-picture");
  const canvas = make("canvas", "sd-canvas");
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-roledescription", say("grid_role"));
  const probe = make("p", "sd-probe");
  picture.append(canvas, probe);
  picture.hidden = true;
  const key = make("div", "sd-key");
  const more = make("dl", "sd-figures");
  card.append(head, badge, answer, sure, note, picture, key, more);
  const parts = { card, status, badge, answer, sure, note, noteHead, noteBody, picture, canvas, probe, key, more, column,
    since: 0, mask: null, left: null, shown: null, counts: [], scores: {}, ranks: null, absorbed: new Map(), signature: "", source: null };
  canvas.addEventListener("pointermove", (event) => !view.pinned && pointAt(parts, cellAt(parts, event)));
  canvas.addEventListener("pointerleave", () => !view.pinned && pointAt(parts, null));
  canvas.addEventListener("click", (event) => {
    const cell = cellAt(parts, event);
    const again = view.pinned && view.probe && view.probe.row === cell.row && view.probe.col === cell.col;
    view.pinned = !again;
    pointAt(parts, again ? null : cell);
  });
  canvas.addEventListener("keydown", (event) => moveCell(parts, event));
  canvas.addEventListener("blur", () => {
    view.pinned = false;
    pointAt(parts, null);
  });
  return parts;
}

function statusText(parts) {
  const { status, stage } = parts.column;
  if (status !== "running") return stage || status;
  const seconds = (performance.now() - parts.since) / 1000;
  return stage + " · " + seconds.toFixed(1) + " s";
}

function updateCard(parts, column) {
  if (column.status === "running" && (parts.column.status !== "running" || !parts.since)) parts.since = performance.now();
  parts.column = column;
  parts.card.dataset.status = column.status;
  parts.card.dataset.method = column.method;
  setText(parts.status, statusText(parts));
  parts.status.hidden = column.status === "idle";
  const signature = JSON.stringify([column.answer, column.error, column.words, column.badge, column.sure, column.note,
    column.status, column.figures]);
  if (signature !== parts.signature) {
    parts.signature = signature;
    drawAnswer(parts, column);
    drawNote(parts, column.note);
    drawFigures(parts, column.figures);
  }
  if (!column.tokens) {
    parts.mask = null;
    parts.scores = {};
  } else if (parts.source !== column.tokens.mask) {
    parts.mask = bytes(column.tokens.mask);
    parts.left = bytes(column.tokens.left);
    parts.ranks = null;
    parts.scores = {};
    for (const kind of Object.keys(column.tokens.scores)) parts.scores[kind] = unpackScore(column.tokens.scores[kind]);
    const pairs = new Int32Array(bytes(column.tokens.absorbed).buffer);
    parts.absorbed = new Map();
    for (let i = 0; i < pairs.length; i += 2) parts.absorbed.set(pairs[i], pairs[i + 1]);
    enter(parts);
  }
  parts.source = column.tokens ? column.tokens.mask : null;
}

function unpackScore(score) {
  const values = new Float32Array(bytes(score.values).buffer);
  const span = score.high - score.low || 1;
  const codes = Uint8Array.from(values, (v) => Math.round(255 * Math.min(1, Math.max(0, ((v || 0) - score.low) / span))));
  return { values, codes, low: score.low, high: score.high };
}

function drawAnswer(parts, column) {
  const text = column.error || column.answer;
  parts.answer.replaceChildren();
  if (text && column.words.length && !column.error) {
    for (const [word, differs] of column.words) parts.answer.append(differs ? make("mark", "sd-diff", word) : word);
  } else {
    parts.answer.textContent = text || ({ done: say("empty_answer"), stopped: say("no_answer"), idle: "" }[column.status]
      ?? "…");
  }
  parts.answer.classList.toggle("sd-empty", !text);
  parts.answer.hidden = column.status === "idle";
  parts.badge.hidden = !column.badge;
  if (column.badge) {
    setText(parts.badge, column.badge.text);
    parts.badge.dataset.kind = column.badge.kind;
  }
  parts.sure.replaceChildren();
  parts.sure.hidden = !column.sure;
  if (column.sure) {
    const bar = make("div", "sd-sure-bar");
    const fill = make("span", "sd-sure-fill");
    fill.style.width = 100 * column.sure.value + "%";
    bar.append(fill);
    if (column.sure.vanilla !== null) {
      const tick = make("span", "sd-sure-tick");
      tick.style.left = 100 * column.sure.vanilla + "%";
      tick.title = say("sure_tick");
      bar.append(tick);
    }
    parts.sure.append(make("span", "", column.sure.text), bar);
    parts.sure.title = say("sure_help");
  }
}

function drawNote(parts, note) {
  parts.note.hidden = !note;
  const cut = note.search(/[:.](\s|$)/);
  const short = parts.column.status === "idle" || cut < 0 || cut > 60 ? note : note.slice(0, cut + 1);
  setText(parts.noteHead, short);
  setText(parts.noteBody, note.slice(short.length));
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

// ---- layers ----------------------------------------------------------------------------------------------------

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

// ---- drawing ---------------------------------------------------------------------------------------------------

const hatches = new Map();

function hatchPattern(context, absorbed) {
  const kind = absorbed ? "absorbed" : "dropped";
  if (!hatches.has(kind)) {
    const tile = document.createElement("canvas");
    tile.width = tile.height = 8;
    const pen = tile.getContext("2d");
    pen.strokeStyle = absorbed ? "rgba(120,190,255,.5)" : "rgba(255,255,255,.22)";
    pen.lineWidth = 1.4;
    pen.beginPath();
    for (const x of [-8, 0, 8]) {
      pen.moveTo(x, absorbed ? 0 : 8);
      pen.lineTo(x + 8, absorbed ? 8 : 0);
    }
    pen.stroke();
    hatches.set(kind, context.createPattern(tile, "repeat"));
  }
  return hatches.get(kind);
}

function paintFrame(context, frame, x, y, width, height) {
  const clip = view.value.clip;
  const index = clip.shown[frame];
  const row = Math.floor(index / clip.per_row);
  const left = (index % clip.per_row) * clip.width;
  context.drawImage(view.image, left, row * clip.height, clip.width, clip.height, x, y, width, height);
}

function cells(tokens, x, y, width, height, visit) {
  const w = width / tokens.cols;
  const h = height / tokens.rows;
  for (let row = 0; row < tokens.rows; row++) {
    for (let col = 0; col < tokens.cols; col++) visit(row * tokens.cols + col, x + col * w, y + row * h, w, h);
  }
}

function shadeDropped(context, parts, frame, x, y, width, height, hatched) {
  const tokens = parts.column.tokens;
  const base = frame * tokens.rows * tokens.cols;
  const dropped = new Path2D();
  const absorbed = new Path2D();
  cells(tokens, x, y, width, height, (cell, left, top, w, h) => {
    if (parts.shown[base + cell] === 0)
      (parts.absorbed.has(base + cell) ? absorbed : dropped).rect(left, top, w + 0.5, h + 0.5);
  });
  context.fillStyle = "rgba(8,10,14,.74)";
  context.fill(dropped);
  context.fillStyle = "rgba(8,24,48,.66)";
  context.fill(absorbed);
  if (!hatched) return;
  context.fillStyle = hatchPattern(context, false);
  context.fill(dropped);
  context.fillStyle = hatchPattern(context, true);
  context.fill(absorbed);
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

function ready(parts) {
  return Boolean(parts.column.tokens && parts.mask && view.value.clip && view.image);
}

// Read sizes for every card first and write afterwards, so that one move costs one layout.
function measure(parts) {
  parts.picture.hidden = !ready(parts);
  parts.width = parts.canvas.clientWidth;
}

function resize(parts) {
  if (!ready(parts)) return;
  const ratio = window.devicePixelRatio || 1;
  const width = Math.max(160, Math.round(parts.width * ratio));
  const height = Math.round((width * view.value.clip.height) / view.value.clip.width);
  if (parts.canvas.width === width && parts.canvas.height === height) return;
  parts.canvas.width = width;
  parts.canvas.height = height;
}

function drawCanvas(parts) {
  if (!ready(parts)) return;
  drawPicture(parts.canvas.getContext("2d"), parts, 0, 0, parts.canvas.width, parts.canvas.height, true);
}

// One frame of one method as `view` says, into any canvas; `pointer` draws the cell that is pointed at, too.
function drawPicture(context, parts, x, y, width, height, pointer) {
  const tokens = parts.column.tokens;
  const ratio = window.devicePixelRatio || 1;
  const frame = Math.min(view.frame, tokens.frames - 1);
  const base = frame * tokens.rows * tokens.cols;
  const score = parts.scores[view.mode];
  paintFrame(context, frame, x, y, width, height);
  const cell = Math.min(width / tokens.cols, height / tokens.rows);
  if (view.mode === "kept") {
    shadeDropped(context, parts, frame, x, y, width, height, true);
  } else if (score) {
    context.globalAlpha = 0.78;
    cells(tokens, x, y, width, height, (index, left, top, w, h) => {
      context.fillStyle = RAMP[score.codes[base + index]];
      context.fillRect(left, top, w + 0.5, h + 0.5);
    });
    context.globalAlpha = 1;
  } else {
    context.fillStyle = "rgba(8,10,14,.74)";
    context.fillRect(x, y, width, height);
  }
  const outlined = entering(tokens) < tokens.visual && (view.mode === "kept" || score);
  const marks = [];
  const path = new Path2D();
  cells(tokens, x, y, width, height, (index, left, top, w, h) => {
    const code = parts.shown[base + index];
    if (code === 0) return;
    if (outlined) path.rect(left + 1, top + 1, w - 2, h - 2);
    const mark = view.mode === "kept" ? markOf(tokens.roles[code]) : "";
    if (mark) marks.push([mark, left + 0.22 * w, top + 0.22 * h]); // in the corner: what was kept stays visible
  });
  context.strokeStyle = view.mode === "kept" ? "rgba(255,255,255,.55)" : "#fff";
  context.lineWidth = view.mode === "kept" ? ratio : 2 * ratio;
  context.stroke(path);
  for (const [mark, left, top] of marks) drawMark(context, mark, left, top, Math.min(cell * 0.42, 15 * ratio));
  drawEvidence(context, frame, x, y, width, height);
  if (pointer) drawPointer(context, parts, frame, x, y, width, height);
}

function drawEvidence(context, frame, x, y, width, height) {
  const time = view.value.clip.timestamps[frame];
  for (const { start, end, box } of view.value.evidence) {
    if (!box || time < start || time >= end) continue;
    const [left, top, right, bottom] = box;
    context.lineWidth = Math.max(3, width / 100);
    for (const [style, dash] of [["#000", []], [EVIDENCE, [width / 50, width / 80]]]) {
      context.strokeStyle = style;
      context.setLineDash(dash);
      context.strokeRect(x + left * width, y + top * height, (right - left) * width, (bottom - top) * height);
    }
    context.setLineDash([]);
  }
}

function drawPointer(context, parts, frame, x, y, width, height) {
  if (!view.probe) return;
  const tokens = parts.column.tokens;
  const per = tokens.rows * tokens.cols;
  const slot = frame * per + view.probe.row * tokens.cols + view.probe.col;
  const target = parts.absorbed.get(slot);
  const box = (index) => [x + ((index % tokens.cols) * width) / tokens.cols,
    y + (Math.floor(index / tokens.cols) * height) / tokens.rows, width / tokens.cols, height / tokens.rows];
  context.lineWidth = Math.max(2, width / 120);
  context.strokeStyle = "#fff";
  context.strokeRect(...box(slot % per));
  context.strokeStyle = "#e0218a";
  context.setLineDash([4, 3]);
  context.strokeRect(...box(slot % per));
  if (target !== undefined && Math.floor(target / per) === frame) context.strokeRect(...box(target % per));
  context.setLineDash([]);
}

// ---- the token that is pointed at ------------------------------------------------------------------------------

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
    const { values } = parts.scores[kind];
    const order = [...values.keys()].filter((slot) => !Number.isNaN(values[slot])).sort((a, b) => values[b] - values[a]);
    const places = new Int32Array(values.length);
    order.forEach((slot, place) => {
      const tied = place && values[order[place - 1]] === values[slot];
      places[slot] = tied ? places[order[place - 1]] : place + 1;
    });
    parts.ranks = { kind, places, count: order.length };
  }
  return parts.ranks;
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

// ---- timeline --------------------------------------------------------------------------------------------------

function drawTimeline() {
  const host = $(".sd-timeline");
  host.querySelectorAll(".sd-track-label, .sd-track").forEach((node) => node.remove());
  const count = frameCount();
  const slider = $(".sd-frame");
  slider.max = count - 1;
  // The thumb's centre stands over the middle of its frame, so that slider and tracks read as one.
  const thumb = 18;
  slider.style.marginLeft = `calc(${50 / count}% - ${thumb / 2}px)`;
  slider.style.width = count > 1 ? `calc(${100 - 100 / count}% + ${thumb}px)` : "100%";
  const { timestamps } = view.value.clip;
  const frames = timestamps.map((_, frame) => frame);
  const found = frames.filter((frame) => view.value.evidence.some((one) => inside(one, timestamps[frame])));
  if (found.length && found.length < count)
    addTrack(host, say("evidence"), runsOf(found), count, EVIDENCE, say("evidence_help"));
  for (const parts of view.cards.values()) {
    const { tokens, label, color } = parts.column;
    if (tokens && tokens.segments.length)
      addTrack(host, say("segments", { label, count: tokens.segments.length }), tokens.segments, count, color, "");
  }
}

function inside(evidence, time) {
  return evidence.start <= time && time < evidence.end;
}

function runsOf(frames) {
  const runs = [];
  for (const frame of frames) {
    if (runs.length && runs.at(-1)[1] === frame) runs.at(-1)[1] = frame + 1;
    else runs.push([frame, frame + 1]);
  }
  return runs;
}

function addTrack(host, name, spans, count, color, help) {
  const label = make("span", "sd-track-label", name);
  const track = make("div", "sd-track");
  for (const [start, end] of spans) {
    const block = make("button", "sd-block");
    block.type = "button";
    block.tabIndex = -1;
    block.style.left = (100 * start) / count + "%";
    block.style.width = (100 * (end - start)) / count + "%";
    block.style.setProperty("--method", color);
    const text = say("span", { name, from: start + 1, to: end });
    block.title = help ? text + ". " + help : text;
    block.setAttribute("aria-label", text);
    block.addEventListener("click", () => scrub(start));
    track.append(block);
  }
  host.append(label, track);
}

// ---- filmstrip -------------------------------------------------------------------------------------------------

function drawStrip() {
  const host = $(".sd-strip");
  const rows = $(".sd-strip-rows");
  const shown = [...view.cards.values()].filter(ready);
  host.hidden = !shown.length;
  if (host.hidden) return rows.replaceChildren();
  const frames = shown[0].column.tokens.frames;
  const clip = view.value.clip;
  const thumb = Math.max(34, Math.floor(Math.max(rows.clientWidth, 200) / frames));
  const tall = Math.round((thumb * clip.height) / clip.width);
  const bar = 22;
  const ratio = window.devicePixelRatio || 1;
  const ink = getComputedStyle(element).color;
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
    canvas.setAttribute("aria-label", say("strip_label", { label: parts.column.label, kept: parts.counts.join(", ") }));
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const total = tokens.rows * tokens.cols;
    for (let frame = 0; frame < tokens.frames; frame++) {
      const x = frame * thumb;
      paintFrame(context, frame, x, 0, thumb - 2, tall);
      shadeDropped(context, parts, frame, x, 0, thumb - 2, tall, thumb > 60);
      drawEvidence(context, frame, x, 0, thumb - 2, tall);
      const share = parts.counts[frame] / total;
      context.fillStyle = "rgba(128,128,128,.25)";
      context.fillRect(x, tall + 3, thumb - 2, 6);
      context.fillStyle = parts.column.color;
      context.fillRect(x, tall + 3, (thumb - 2) * share, 6);
      context.fillStyle = ink;
      context.font = "10px sans-serif";
      context.fillText(thumb > 44 ? Math.round(share * 100) + " %" : String(Math.round(share * 100)), x + 1, tall + 20);
    }
    context.fillStyle = "#ff5d5d";
    for (const [start] of tokens.segments) if (start > 0) context.fillRect(start * thumb - 2, 0, 2, tall + 10);
    canvas.addEventListener("click", (event) => scrub(Math.floor(event.offsetX / thumb)));
    sheet.append(label, canvas);
  }
  const cursor = make("div", "sd-cursor");
  cursor.style.width = thumb - 2 + "px";
  sheet.append(cursor);
  view.thumb = thumb;
}

// ---- frame and mode --------------------------------------------------------------------------------------------

function goTo(frame) {
  const count = frameCount();
  if (!count) return;
  view.frame = Math.max(0, Math.min(count - 1, frame));
  for (const parts of view.cards.values()) drawCanvas(parts);
  const slider = $(".sd-frame");
  slider.value = view.frame;
  const label = say("time", { frame: view.frame + 1, frames: count,
    seconds: view.value.clip.timestamps[view.frame].toFixed(2) });
  setText($(".sd-time"), label);
  slider.setAttribute("aria-valuetext", label);
  for (const parts of view.cards.values()) describe(parts);
  const cursor = $(".sd-cursor");
  if (cursor) cursor.style.transform = "translateX(" + view.frame * view.thumb + "px)";
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
  button.setAttribute("aria-label", say(on ? "pause" : "play"));
}

// A person moves the columns: neither their own playback nor the clip's may move them on.
function scrub(frame) {
  play(false);
  pauseClip();
  goTo(frame);
}

function pauseClip() {
  const clip = document.querySelector("#clip video");
  if (clip) clip.pause();
}

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

// ---- one picture to keep ---------------------------------------------------------------------------------------

function wrap(context, text, width) {
  const lines = [];
  let line = "";
  for (const word of text.replace(/\s+/g, " ").split(/(?<= )/)) {
    if (line && context.measureText(line + word).width > width) {
      lines.push(line);
      line = "";
    }
    line += word;
    while (context.measureText(line).width > width && line.length > 1) {
      let cut = line.length - 1;
      while (cut > 1 && context.measureText(line.slice(0, cut)).width > width) cut--;
      lines.push(line.slice(0, cut));
      line = line.slice(cut);
    }
  }
  return [...lines, line];
}

// The question, and every column's answer, frame as shown and headline figures, on one canvas; null without a run.
function comparisonPicture() {
  const shown = [...view.cards.values()].filter(ready);
  if (!shown.length) return null;
  const style = getComputedStyle(element);
  const body = getComputedStyle(document.body);
  const gap = 20;
  const width = 360;
  const tall = Math.round((width * view.value.clip.height) / view.value.clip.width);
  const canvas = document.createElement("canvas");
  const context = canvas.getContext("2d");
  const font = (size, weight = "normal") => `${weight} ${size}px system-ui, sans-serif`;
  const across = Math.min(4, shown.length);
  const full = Math.max(across * (width + gap) + gap, 2 * width);
  context.font = font(24, "bold");
  const title = wrap(context, view.value.question, full - 2 * gap);
  context.font = font(14);
  const state = wrap(context, [$(".sd-time").textContent, view.layer === null ? "" : layerName(), view.value.message]
    .filter(Boolean).join(" · "), full - 2 * gap);
  // Every text of a column in lines that fit; the tallest column sets the height of all of its kind.
  const lines = (size, weight, text) => {
    context.font = font(size, weight);
    return shown.map((parts) => wrap(context, text(parts), width));
  };
  const most = (texts) => Math.max(...texts.map((one) => one.length));
  const names = lines(18, "bold", (parts) => parts.column.label);
  const answers = lines(18, "normal", (parts) => parts.answer.textContent);
  const badges = lines(13, "normal", ({ column }) => [column.badge && column.badge.text, column.sure && column.sure.text]
    .filter(Boolean).join(" · "));
  const above = 10 + 24 * (most(names) + most(answers)) + 18 * most(badges) + 8;
  const block = above + tall + 58;
  canvas.width = full;
  canvas.height = 2 * gap + title.length * 32 + state.length * 20 + 14 + Math.ceil(shown.length / across) * (block + gap);
  context.fillStyle = body.backgroundColor === "rgba(0, 0, 0, 0)" ? "#fff" : body.backgroundColor;
  context.fillRect(0, 0, canvas.width, canvas.height);
  const write = (text, x, y, size, weight) => {
    context.font = font(size, weight);
    context.fillStyle = style.color;
    context.textAlign = "left";
    context.textBaseline = "alphabetic";
    context.fillText(text, x, y);
  };
  let y = gap + 24;
  for (const line of title) {
    write(line, gap, y, 24, "bold");
    y += 32;
  }
  for (const line of state) {
    write(line, gap, y - 4, 14);
    y += 20;
  }
  shown.forEach((parts, index) => {
    const x = gap + (index % across) * (width + gap);
    let top = y + Math.floor(index / across) * (block + gap);
    context.fillStyle = parts.column.color;
    context.fillRect(x, top, width, 5);
    names[index].forEach((line, at) => write(line, x, top + 26 + at * 24, 18, "bold"));
    top += 10 + 24 * most(names);
    answers[index].forEach((line, at) => write(line, x, top + 18 + at * 24, 18));
    badges[index].forEach((line, at) => write(line, x, top + 24 * most(answers) + 16 + at * 18, 13));
    top = y + Math.floor(index / across) * (block + gap) + above;
    drawPicture(context, parts, x, top, width, tall, false);
    parts.column.figures.filter((figure) => ["kept", "speedup", "flops_ratio"].includes(figure.key))
      .forEach((figure, at) => write(figure.label + ": " + figure.value, x + (at === 2 ? width / 2 : 0),
        top + tall + (at ? 44 : 22), 14));
  });
  return canvas;
}

function savePicture() {
  const canvas = comparisonPicture();
  if (!canvas) return;
  canvas.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = "comparison.png";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }, "image/png");
}

// ---- value -----------------------------------------------------------------------------------------------------

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
  view.value = value;
  if ($(".sd-message").textContent !== value.message) view.changed = performance.now();
  setText($(".sd-message"), value.message);
  $(".sd-status").dataset.phase = value.phase;
  $(".sd").dataset.phase = value.phase;
  if (fresh) {
    rememberClip(value);
    if (value.query) window.sharpAddress.settings(value.query);
    view.frame = 0;
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
  tick();
  loadSprite(value.clip);
  const pictures = value.run + "|" + value.columns.map((column) => (column.tokens ? column.label : "")).join("|");
  if (fresh || pictures !== view.key) {
    view.key = pictures;
    redraw();
  }
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
  $(".sd-strip h3").textContent = say("strip_title");
  $(".sd-strip .sd-sub").textContent = say("strip_help");
  $(".sd-strip-rows").setAttribute("aria-label", say("strip_title"));
  for (const radio of element.querySelectorAll(".sd-modes input"))
    radio.nextElementSibling.textContent = STRINGS.kinds[radio.value];
}

label();
function toggle() {
  pauseClip();
  play(!view.timer);
}
$(".sd-play").addEventListener("click", toggle);
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
window.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || !frameCount() || !$(".sd-bar").offsetParent) return;
  const slider = event.target === $(".sd-frame");
  if (!slider && event.target.closest("input, textarea, select, video, [role=tab], [role=listbox], "
    + "[contenteditable], .md-scroll"))
    return;
  // A focused button keeps its own space bar, and the slider its own arrows.
  if (event.key === " " && event.target.closest("button, a, summary, [role=button]")) return;
  if (slider && !/^[ 1-9]$/.test(event.key)) return;
  const count = frameCount();
  const moves = { ArrowLeft: view.frame - 1, ArrowRight: view.frame + 1 };
  if (event.key === " ") toggle();
  else if (/^[1-9]$/.test(event.key)) scrub(Math.floor((Number(event.key) * count) / 10));
  else if (event.key in moves) scrub(moves[event.key]);
  else return;
  event.preventDefault();
});
// The columns follow the input clip: at every picture while it plays, and when it is moved by hand.
function follow(video) {
  if (!frameCount() || !$(".sd-bar").offsetParent || video.currentSrc !== view.clipSource) return;
  const times = view.value.clip.timestamps;
  let nearest = 0;
  times.forEach((time, index) => {
    if (Math.abs(time - video.currentTime) < Math.abs(times[nearest] - video.currentTime)) nearest = index;
  });
  if (nearest !== view.frame) goTo(nearest);
}
function followWhilePlaying(video) {
  if (video.paused || video.ended || !video.isConnected) return;
  follow(video);
  requestAnimationFrame(() => followWhilePlaying(video));
}
for (const type of ["play", "timeupdate", "seeked"]) {
  document.addEventListener(type, (event) => {
    if (!event.target.closest || !event.target.closest("#clip")) return;
    if (type === "play") {
      play(false);
      followWhilePlaying(event.target);
    } else if (type === "seeked" || !event.target.paused) follow(event.target); // pausing updates the time once more
  }, true);
}
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
