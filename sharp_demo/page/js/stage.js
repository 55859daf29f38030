// Stage mode, for a talk: only the columns, in large type. The key f, or `?stage=1`; Escape leaves.
(() => {
  const root = document.documentElement;
  const stage = (on) => {
    root.classList.toggle("stage", on);
    window.dispatchEvent(new Event("resize"));
  };
  if (new URLSearchParams(location.search).get("stage") === "1") stage(true);
  window.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.target.closest?.("input, textarea, select, [contenteditable], [role=listbox]")) return;
    if (event.key === "f") stage(!root.classList.contains("stage"));
    else if (event.key === "Escape") stage(false);
  });
})();
