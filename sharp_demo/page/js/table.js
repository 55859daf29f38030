const box = element.querySelector(".md-table");
const scroll = element.querySelector(".md-scroll");
function draw() {
  const value = props.value;
  box.hidden = !value;
  if (!value) return;
  scroll.setAttribute("aria-label", value.caption || STRINGS.table);
  element.querySelector(".md-caption").textContent = value.caption || "";
  const head = make("tr");
  for (const text of value.head) {
    const cell = make("th", "", text);
    cell.scope = "col";
    head.append(cell);
  }
  element.querySelector("thead").replaceChildren(head);
  element.querySelector("tbody").replaceChildren(...value.rows.map((cells) => {
    const row = make("tr");
    cells.forEach((content, index) => {
      const cell = make(index ? "td" : "th");
      if (!index) cell.scope = "row";
      const data = typeof content === "string" ? { text: content } : content;
      if (data.color) {
        const dot = make("span", "md-dot");
        dot.style.background = data.color;
        cell.append(dot);
      }
      cell.append(document.createTextNode(data.text));
      if (data.note) cell.append(make("small", "", data.note));
      if (data.kind) cell.dataset.kind = data.kind;
      if (data.title) cell.title = data.title;
      row.append(cell);
    });
    return row;
  }));
}
watch("value", draw);
draw();
