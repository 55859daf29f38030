// The template is static; everything below writes with textContent or on canvas.
const host = element.querySelector(".wk");
const NAMES = ["other", "register", "prefiltered", "absorbed", "pivot", "filled", "repaired", "gone", "added", "removed"];
// Brightness of the patch, frame colour and mark: shape and brightness say it, colour only repeats it.
const STYLES = { other: [0.55], register: [1, "#ffffff", "●"], prefiltered: [0.16, null, "×"], absorbed: [0.3, "#e08a00", "–"],
  pivot: [1, "#e08a00", "+"], filled: [1, "#2fd4a7", "○"], repaired: [1, "#c79bff", "◇"], gone: [0.16], added: [1, "#2fd4a7", "+"],
  removed: [0.3, "#ff7b72", "–"] };
let image = null;

function fillHatched(context, x, y, w, h) {
  context.fillStyle = hatch(context, "fine");
  context.fillRect(x, y, w, h);
}

function paintFate(context, name, x, y, w, h) {
  const [light, color, mark] = STYLES[name];
  context.fillStyle = "rgba(0,0,0," + (1 - light) + ")";
  context.fillRect(x, y, w, h);
  if (light < 0.25) fillHatched(context, x, y, w, h);
  if (color) {
    context.strokeStyle = color;
    context.lineWidth = 2;
    context.strokeRect(x + 1, y + 1, w - 2, h - 2);
  }
  if (!mark) return;
  const size = Math.min(w, h) * 0.62;
  context.font = "700 " + size + "px sans-serif";
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.lineWidth = 3;
  context.strokeStyle = "rgba(0,0,0,.85)";
  context.strokeText(mark, x + w / 2, y + h / 2);
  context.fillStyle = color || "#fff";
  context.fillText(mark, x + w / 2, y + h / 2);
}

function cell(value, frame, codes, view) {
  const canvas = make("canvas");
  const { clip, rows, cols } = value;
  canvas.width = 224;
  canvas.height = Math.round((224 * clip.height) / clip.width);
  const context = canvas.getContext("2d");
  const index = clip.shown[frame];
  context.drawImage(image, (index % clip.per_row) * clip.width, Math.floor(index / clip.per_row) * clip.height,
    clip.width, clip.height, 0, 0, canvas.width, canvas.height);
  if (!codes) return canvas;
  for (let at = 0; at < rows * cols; at++) {
    const x = ((at % cols) * canvas.width) / cols;
    const y = (Math.floor(at / cols) * canvas.height) / rows;
    const code = codes[frame * rows * cols + at];
    if (view.heat) {
      context.globalAlpha = 0.82;
      context.fillStyle = VIRIDIS[code];
      context.fillRect(x, y, canvas.width / cols, canvas.height / rows);
      context.globalAlpha = 1;
    } else paintFate(context, NAMES[code], x, y, canvas.width / cols, canvas.height / rows);
  }
  return canvas;
}

function chosen(codes, frame, size) {
  const kept = ["register", "pivot", "filled", "repaired", "added"];
  return codes.subarray(frame * size, (frame + 1) * size).reduce((sum, code) => sum + kept.includes(NAMES[code]), 0);
}

function strip(value, chapter, view) {
  const box = make("div", "wk-strip");
  const codes = view ? bytes(view.codes) : null;
  const starts = chapter.cuts ? chapter.cuts.segments.map((segment) => segment[0]) : [];
  for (let frame = 0; frame < value.frames; frame++) {
    const holder = make("div", "wk-cell");
    const canvas = cell(value, frame, codes, view);
    const words = [say("frame", { frame: frame + 1 })];
    const line = make("small");
    line.append(make("span", "", say("time", { seconds: value.clip.timestamps[frame].toFixed(1) })));
    if (chapter.cuts && frame) {
      const cosine = chapter.cuts.cosines[frame - 1].toFixed(2);
      line.prepend(make("b", "", say("cosine", { cosine })));
      words.push(say("cosine_label", { cosine }));
      if (starts.includes(frame)) {
        holder.classList.add("wk-cut");
        words.push(say("cut"));
      }
    }
    if (view && !view.heat) {
      const count = chosen(codes, frame, value.rows * value.cols);
      line.append(make("span", "", String(count)));
      words.push(say("chosen", { count }));
    }
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", words.join(", "));
    holder.append(canvas, line);
    box.append(holder);
  }
  return box;
}

function mask(value, chapter) {
  const box = make("div", "wk-mask");
  const canvas = make("canvas");
  canvas.width = canvas.height = 400;
  const context = canvas.getContext("2d");
  const size = 400 / value.frames;
  const group = new Array(value.frames).fill(0);
  chapter.cuts.segments.forEach(([first, end], number) => group.fill(number, first, end));
  for (let row = 0; row < value.frames; row++)
    for (let col = 0; col <= row; col++) {
      const seen = group[row] === group[col];
      context.fillStyle = seen ? "#3d7ff0" : "rgba(128,128,128,.35)";
      context.fillRect(col * size, row * size, size - 1, size - 1);
      if (!seen) fillHatched(context, col * size, row * size, size - 1, size - 1);
    }
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", chapter.mask);
  box.append(canvas, make("p", "wk-note", chapter.mask));
  return box;
}

function legend(value, view) {
  const list = make("ul");
  for (const name of view.fates || []) {
    const item = make("li");
    const canvas = make("canvas");
    canvas.width = canvas.height = 40;
    const context = canvas.getContext("2d");
    context.fillStyle = "#8b94a1";
    context.fillRect(0, 0, 40, 40);
    paintFate(context, name, 0, 0, 40, 40);
    item.append(canvas, document.createTextNode(value.fates[name]));
    list.append(item);
  }
  return list;
}

function drawChapter(value, chapter, number) {
  const section = make("section");
  section.append(make("h3", "", chapter.title), make("p", "", chapter.text));
  if (chapter.views.length) {
    const choice = make("fieldset");
    choice.setAttribute("aria-label", chapter.title);
    const shown = make("div");
    const show = (view) => {
      const text = make("p", "wk-note", view.text);
      text.setAttribute("aria-live", "polite");
      shown.replaceChildren(text, legend(value, view), strip(value, chapter, view));
    };
    chapter.views.forEach((view, index) => {
      const label = make("label");
      const radio = make("input");
      radio.type = "radio";
      radio.name = "wk-" + number;
      radio.checked = index === 0;
      radio.addEventListener("change", () => show(view));
      label.append(radio, make("span", "", view.label));
      choice.append(label);
    });
    show(chapter.views[0]);
    section.append(choice, shown);
  } else if (chapter.cuts) section.append(strip(value, chapter, null), mask(value, chapter));
  return section;
}

function draw() {
  const value = props.value;
  host.hidden = !value;
  if (!value) return host.replaceChildren();
  const picture = new Image();
  picture.onload = () => {
    if (props.value !== value) return;
    image = picture;
    host.replaceChildren(...value.chapters.map((chapter, number) => drawChapter(value, chapter, number)));
  };
  picture.onerror = () => {
    if (props.value !== value) return;
    const lost = make("p", "wk-note", say("no_picture"));
    lost.setAttribute("role", "status");
    host.replaceChildren(lost);
  };
  picture.src = value.clip.sprite.url;
}
watch("value", draw);
draw();
