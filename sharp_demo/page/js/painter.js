// Pictures of tokens over frames, into any canvas, as `view` says.
const EVIDENCE = "#ffd23f";
const PLAIN = new Set(["dropped", "kept"]);

function markOf(role) {
  return PLAIN.has(role) ? "" : STRINGS.marks[role] || role.slice(0, 1).toUpperCase();
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
  context.fillStyle = hatch(context, "dropped");
  context.fill(dropped);
  context.fillStyle = hatch(context, "absorbed");
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
      context.fillStyle = VIRIDIS[score.codes[base + index]];
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
