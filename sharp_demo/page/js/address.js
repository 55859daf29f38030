// The settings of the run on the page and the open mode go into the page's address; what Gradio keeps there
// (`__theme`) stays.
window.sharpAddress = {
  put(address) {
    history.replaceState(history.state, "", "?" + address);
  },
  settings(query) {
    const address = new URLSearchParams(query);
    for (const [name, text] of new URLSearchParams(location.search)) if (name.startsWith("__")) address.set(name, text);
    this.put(address);
  },
  // The tab that is open at first was chosen by nobody, and the link's own is still to come.
  moved: false,
  mode(name) {
    this.moved ||= name !== "compare";
    if (!this.moved) return;
    const address = new URLSearchParams(location.search);
    if (name === "compare") address.delete("mode");
    else address.set("mode", name);
    this.put(address);
  },
};
