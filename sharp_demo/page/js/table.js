const box = element.querySelector(".md-table");
const scroll = element.querySelector(".md-scroll");
function draw() {
  const value = props.value;
  box.hidden = !value;
  if (!value) return;
  scroll.setAttribute("aria-label", value.caption || STRINGS.table);
  element.querySelector(".md-caption").textContent = value.caption || "";
  const head = document.createElement("tr");
  for (const text of value.head) {
    const cell = document.createElement("th");
    cell.scope = "col";
    cell.textContent = text;
    head.append(cell);
  }
  element.querySelector("thead").replaceChildren(head);
  element.querySelector("tbody").replaceChildren(...value.rows.map((cells) => {
    const row = document.createElement("tr");
    cells.forEach((content, index) => {
      const cell = document.createElement(index ? "td" : "th");
      if (!index) cell.scope = "row";
      const data = typeof content === "string" ? { text: content } : content;
      if (data.color) {
        const dot = document.createElement("span");
        dot.className = "md-dot";
        dot.style.background = data.color;
        cell.append(dot);
      }
      cell.append(document.createTextNode(data.text));
      if (data.note) {
        const note = document.createElement("small");
        note.textContent = data.note;
        cell.append(note);
      }
      if (data.kind) cell.dataset.kind = data.kind;
      if (data.title) cell.title = data.title;
      row.append(cell);
    });
    return row;
  }));
}
watch("value", draw);
draw();
