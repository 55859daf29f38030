// Which frame is shown: by hand, by playing, and with the input clip.
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

function play(on, last = -1) {
  clearInterval(view.timer);
  if (on) view.moved = true;
  view.timer = on ? setInterval(() => step(last), 350) : null;
  const button = $(".sd-play");
  setText(button, on ? "❚❚" : "▶");
  button.setAttribute("aria-pressed", String(on));
  button.setAttribute("aria-label", say(on ? "pause" : "play"));
}

// One frame on; playing ends at the frame `last`.
function step(last) {
  goTo((view.frame + 1) % frameCount());
  if (view.frame === last) play(false);
}

// Through all frames and back to this one, for who does not mind motion.
function playOnce() {
  if (frameCount() && !matchMedia("(prefers-reduced-motion: reduce)").matches) play(true, view.frame);
}

// A person moves the columns: neither their own playback nor the clip's may move them on.
function scrub(frame) {
  play(false);
  view.moved = true;
  pauseClip();
  goTo(frame);
}

function pauseClip() {
  const clip = document.querySelector("#clip video");
  if (clip) clip.pause();
}

function toggle() {
  pauseClip();
  play(!view.timer);
}

// The columns follow the input clip: at every picture while it plays, and when it is moved by hand.
function follow(video) {
  if (!frameCount() || !$(".sd-bar").offsetParent || video.currentSrc !== view.clipSource) return;
  const frame = nearest(view.value.clip.timestamps, video.currentTime);
  view.moved = true;
  if (frame !== view.frame) goTo(frame);
}

// The first of the times that are nearest to `now`.
function nearest(times, now) {
  return times.reduce((best, time, index) => (Math.abs(time - now) < Math.abs(times[best] - now) ? index : best), 0);
}

function followWhilePlaying(video) {
  if (video.paused || video.ended || !video.isConnected) return;
  follow(video);
  requestAnimationFrame(() => followWhilePlaying(video));
}

function onClip(event) {
  if (!event.target.closest || !event.target.closest("#clip")) return;
  if (event.type === "play") {
    play(false);
    followWhilePlaying(event.target);
  } else if (event.type === "seeked" || !event.target.paused) follow(event.target); // pausing updates the time once more
}

function onKey(event) {
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
}
