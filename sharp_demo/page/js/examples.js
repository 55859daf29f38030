const row = element.querySelector("div");
row.setAttribute("aria-label", STRINGS.label);
function draw() {
  row.replaceChildren();
  (props.value || []).forEach((example, index) => {
    const button = make("button");
    button.type = "button";
    const clip = make("video");
    clip.muted = clip.loop = clip.playsInline = true;
    clip.preload = "metadata";
    clip.tabIndex = -1;
    clip.src = example.video.url + "#t=0.5";
    const text = make("span");
    text.append(make("strong", "", example.short));
    button.title = example.question + "\n" + example.note;
    button.setAttribute("aria-label", example.question);
    button.append(clip, text);
    button.addEventListener("pointerenter", () => {
      if (!matchMedia("(prefers-reduced-motion: reduce)").matches) clip.play().catch(() => {});
    });
    button.addEventListener("pointerleave", () => clip.pause());
    button.addEventListener("click", () => {
      for (const other of row.children) other.setAttribute("aria-pressed", String(other === button));
      trigger("select", { index: index });
    });
    row.append(button);
  });
}
watch("value", draw);
draw();
