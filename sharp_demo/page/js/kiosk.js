// Examples loop while nobody is there; an idle visitor's data are wiped by the server and the page starts afresh.
const { idle_s: idle, loop_s: loop, count, banner, hint } = props.value;
const box = element.querySelector(".kk");
const FLAG = "sharp-kiosk-loop";
const ROUNDS = 4; // then the page starts afresh: every new clip leaves parts of Gradio's player behind, 0.1 MB each
const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
let last = performance.now();
let shown = 0;
let index = 1 % count; // the page opens with the first one
let looping = sessionStorage.getItem(FLAG) === "1";
let touched = false;
let at = "";
let wiping = false;
let rounds = 0;
element.querySelector("strong").textContent = banner;
element.querySelector("span").textContent = hint;
sessionStorage.removeItem(FLAG);

function present(event) {
  if (!event.isTrusted) return;
  // A pointer that rests while the page moves under it is nobody.
  if (event.type === "pointermove") {
    const place = event.screenX + "," + event.screenY;
    if (place === at || !at) return void (at = place);
    at = place;
  }
  last = performance.now();
  touched = true;
  looping = false;
  box.hidden = true;
}
for (const type of ["pointerdown", "pointermove", "keydown", "wheel", "touchstart"])
  window.addEventListener(type, present, { capture: true, passive: true });

function busy() {
  return Boolean(document.querySelector(".sd-status[data-phase=running], .sd-status[data-phase=waiting], "
    + ".md-status[data-phase=running], .md-status[data-phase=waiting]"));
}

function restart() {
  wiping = true;
  sessionStorage.setItem(FLAG, "1");
  location.replace(location.pathname);
}

function show() {
  if (index === 0 && rounds++ >= ROUNDS && looping) return void restart();
  shown = performance.now();
  trigger("select", { index });
  index = (index + 1) % count;
  if (looping && !still) setTimeout(() => {
    const play = document.querySelector("#columns .sd-play[aria-pressed=false]");
    if (looping && play) play.click();
  }, 1500);
}

setInterval(() => {
  const now = performance.now();
  if (wiping) return;
  if (looping) {
    box.hidden = false;
    if (count && now - shown > loop * 1000) show();
  } else if (busy()) {
    last = now; // who waits for an answer is there, and has time to read it
  } else if (now - last > idle * 1000) {
    if (touched) {
      wiping = true;
      sessionStorage.setItem(FLAG, "1");
      trigger("select", { index: -1 });
      // The server reloads the page when it is done; a server that is gone must not leave a visitor's data up.
      setTimeout(restart, 4000);
    } else looping = true;
  }
}, 250);
