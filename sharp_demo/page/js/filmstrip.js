// Every frame of every method in one row.
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
