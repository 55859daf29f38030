const box = element.querySelector(".md-status");
const text = element.querySelector("p");
const since = element.querySelector(".md-since");
let changed = 0;
const bar = element.querySelector("progress");
// Seconds since the message last changed; not announced to screen readers.
function tick() {
  const seconds = Math.floor((performance.now() - changed) / 1000);
  since.hidden = bar.hidden || seconds < 1;
  since.textContent = since.hidden ? "" : " · " + seconds + " s";
}
function draw() {
  const value = props.value;
  if (!value) return;
  box.dataset.phase = value.phase;
  if (value.query) window.sharpAddress.settings(value.query);
  if (text.textContent !== value.message) {
    text.textContent = value.message;
    changed = performance.now();
  }
  bar.hidden = value.phase !== "running" && value.phase !== "waiting";
  bar.setAttribute("aria-label", value.message);
  if (value.of && value.phase === "running") {
    bar.max = value.of;
    bar.value = value.done;
  } else bar.removeAttribute("value");
  tick();
}
setInterval(tick, 1000);
watch("value", draw);
draw();
