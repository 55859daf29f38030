// One picture to keep: the question, and every column's answer, frame as shown and headline figures.
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
  const canvas = make("canvas");
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
  const figures = shown.map((parts) => parts.column.figures.filter((figure) => figure.headline));
  const block = above + tall + 14 + 22 * most(figures);
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
    figures[index].forEach((figure, at) => write(figure.label + ": " + figure.value, x, top + tall + 22 * (at + 1), 14));
  });
  return canvas;
}

function savePicture() {
  const canvas = comparisonPicture();
  if (!canvas) return;
  canvas.toBlob((blob) => {
    const link = make("a");
    link.href = URL.createObjectURL(blob);
    link.download = "comparison.png";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }, "image/png");
}
