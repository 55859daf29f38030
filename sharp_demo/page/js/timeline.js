// The frame slider, and the tracks below it: evidence and segments.
function drawTimeline() {
  const host = $(".sd-timeline");
  host.querySelectorAll(".sd-track-label, .sd-track").forEach((node) => node.remove());
  const count = frameCount();
  const slider = $(".sd-frame");
  slider.max = count - 1;
  // The thumb's centre stands over the middle of its frame, so that slider and tracks read as one.
  const thumb = 18;
  slider.style.marginLeft = `calc(${50 / count}% - ${thumb / 2}px)`;
  slider.style.width = count > 1 ? `calc(${100 - 100 / count}% + ${thumb}px)` : "100%";
  const { timestamps } = view.value.clip;
  const frames = timestamps.map((_, frame) => frame);
  const found = frames.filter((frame) => view.value.evidence.some((one) => inside(one, timestamps[frame])));
  if (found.length && found.length < count)
    addTrack(host, say("evidence"), runsOf(found), count, EVIDENCE, say("evidence_help"));
  for (const parts of view.cards.values()) {
    const { tokens, label, color } = parts.column;
    if (tokens && tokens.segments.length)
      addTrack(host, say(tokens.segments.length > 1 ? "segments" : "segment", { label, count: tokens.segments.length }), tokens.segments, count, color, "");
  }
}

function inside(evidence, time) {
  return evidence.start <= time && time < evidence.end;
}

function runsOf(frames) {
  const runs = [];
  for (const frame of frames) {
    if (runs.length && runs.at(-1)[1] === frame) runs.at(-1)[1] = frame + 1;
    else runs.push([frame, frame + 1]);
  }
  return runs;
}

function addTrack(host, name, spans, count, color, help) {
  const label = make("span", "sd-track-label", name);
  const track = make("div", "sd-track");
  for (const [start, end] of spans) {
    const block = make("button", "sd-block");
    block.type = "button";
    block.tabIndex = -1;
    block.style.left = (100 * start) / count + "%";
    block.style.width = (100 * (end - start)) / count + "%";
    block.style.setProperty("--method", color);
    const text = say("span", { name, from: start + 1, to: end });
    block.title = help ? text + ". " + help : text;
    block.setAttribute("aria-label", text);
    block.addEventListener("click", () => scrub(start));
    track.append(block);
  }
  host.append(label, track);
}
