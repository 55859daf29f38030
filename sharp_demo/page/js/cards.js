// One card per method: its state, answer, figures, and the arrays behind its picture.
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
  const fold = make("details", "sd-more");
  fold.append(make("summary", "", say("more")), more);
  fold.hidden = true;
  const lane = make("div", "sd-race");
  lane.hidden = true;
  card.append(head, answer, badge, sure, key, lane, picture, fold, note);
  const parts = { card, status, badge, answer, sure, note, noteHead, noteBody, picture, canvas, probe, key, more, fold, race: lane, column,
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
  parts.fold.hidden = !figures.length;
  for (const figure of figures) {
    if (figure.headline) {
      const box = make("div", "sd-big");
      box.title = figure.help;
      const [value, ...rest] = figure.value.split(", "); // what follows a comma qualifies the figure
      box.append(make("strong", "", value), make("span", "", [figure.label, ...rest].join(", ")));
      parts.key.append(box);
    } else {
      const term = make("dt", "", figure.label);
      term.title = figure.help;
      parts.more.append(term, make("dd", "", figure.value));
    }
  }
}
