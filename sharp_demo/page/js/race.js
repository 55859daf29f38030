// The measured times to the first token, replayed on one clock: every column's bar fills with its own parts.
const RACE_MS = 4000; // how long the slowest one takes to watch
const RACE_COLORS = { read: "#8a93a0", see: "#b9a0e0", prefill: "var(--method)" };

function raceTotal(parts) {
  return (parts.column.race || []).reduce((sum, [, ms]) => sum + ms, 0);
}

function racers() {
  return [...view.cards.values()].filter((parts) => raceTotal(parts) > 0);
}

function buildRace(parts) {
  const bar = make("div", "sd-race-bar");
  for (const [name, ms] of parts.column.race) {
    const part = make("span", "sd-race-part");
    part.style.background = RACE_COLORS[name];
    part.title = fill(say("race_time"), { name: STRINGS.race_parts[name], ms: Math.round(ms) });
    bar.append(part);
  }
  parts.race.replaceChildren(bar, make("span", "sd-race-end"));
}

// Every bar as it stands `clock` measured milliseconds after the start.
function drawRace(clock, slowest) {
  for (const parts of racers()) {
    let left = clock;
    parts.column.race.forEach(([, ms], index) => {
      const done = Math.max(0, Math.min(ms, left));
      left -= ms;
      parts.race.querySelectorAll(".sd-race-part")[index].style.width = (100 * done) / slowest + "%";
    });
    const total = raceTotal(parts);
    setText(parts.race.lastChild, clock >= total ? say("race_total", { ms: Math.round(total) }) : "\u00a0");
  }
}

function race() {
  cancelAnimationFrame(view.race);
  const running = racers();
  if (!running.length) return;
  const slowest = Math.max(...running.map(raceTotal));
  const factor = RACE_MS / slowest;
  setText($(".sd-race-note"), factor >= 1 ? say("race_slowed", { factor: factor.toPrecision(2) })
    : say("race_hurried", { factor: (1 / factor).toPrecision(2) }));
  for (const parts of running) {
    parts.race.hidden = false;
    buildRace(parts);
  }
  const began = performance.now();
  const frame = () => {
    const clock = (performance.now() - began) / factor;
    drawRace(Math.min(clock, slowest), slowest);
    if (clock < slowest) view.race = requestAnimationFrame(frame);
  };
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) drawRace(slowest, slowest);
  else frame();
}

// Another run's times are others.
function endRace() {
  cancelAnimationFrame(view.race);
  setText($(".sd-race-note"), "");
  for (const parts of view.cards.values()) parts.race.hidden = true;
  $(".sd-race-go").hidden = racers().length < 2;
}
