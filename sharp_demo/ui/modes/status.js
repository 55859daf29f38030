const box = element.querySelector(".md-status");
const text = element.querySelector("p");
const bar = element.querySelector("progress");
function draw() {
  const value = props.value;
  if (!value) return;
  box.dataset.phase = value.phase;
  if (text.textContent !== value.message) text.textContent = value.message;
  bar.hidden = value.phase !== "running" && value.phase !== "waiting";
  bar.setAttribute("aria-label", value.message);
  if (value.of && value.phase === "running") {
    bar.max = value.of;
    bar.value = value.done;
  } else bar.removeAttribute("value");
}
watch("value", draw);
draw();
