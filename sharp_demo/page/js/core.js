// What every component's script may use: nodes, texts, packed arrays, colours. Pure but for the document; `say` reads
// the STRINGS that come before it.
const VIRIDIS = viridisTable([[68, 1, 84], [70, 50, 126], [54, 92, 141], [39, 127, 142], [31, 161, 135], [74, 193, 109],
  [160, 218, 57], [253, 231, 37]]);
const HATCHES = {
  dropped: { size: 8, width: 1.4, color: "rgba(255,255,255,.22)", falling: false },
  absorbed: { size: 8, width: 1.4, color: "rgba(120,190,255,.5)", falling: true },
  fine: { size: 5, width: 1, color: "rgba(255,255,255,.22)", falling: false },
};
const patterns = new Map();

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function fill(text, values) {
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

function say(key, values = {}) {
  return fill(STRINGS[key], values);
}

function bytes(text) {
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}

function viridisTable(stops) {
  return Array.from({ length: 256 }, (_, code) => {
    const at = (code / 255) * (stops.length - 1);
    const low = Math.min(Math.floor(at), stops.length - 2);
    return "rgb(" + stops[low].map((v, i) => Math.round(v + (stops[low + 1][i] - v) * (at - low))).join(",") + ")";
  });
}

function hatch(context, kind) {
  if (!patterns.has(kind)) {
    const { size, width, color, falling } = HATCHES[kind];
    const tile = make("canvas");
    tile.width = tile.height = size;
    const pen = tile.getContext("2d");
    pen.strokeStyle = color;
    pen.lineWidth = width;
    pen.beginPath();
    for (const x of [-size, 0, size]) {
      pen.moveTo(x, falling ? 0 : size);
      pen.lineTo(x + size, falling ? size : 0);
    }
    pen.stroke();
    patterns.set(kind, context.createPattern(tile, "repeat"));
  }
  return patterns.get(kind);
}
