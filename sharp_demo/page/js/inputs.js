// What stands in the page's inputs now, for whoever shows what was asked.
window.sharpInputs = {
  now: null,
  tell(names, values) {
    this.now = Object.fromEntries(names.map((name, index) => [name, values[index]]));
    window.dispatchEvent(new Event("sharp:inputs"));
  },
  // The names of the inputs that no longer say what was asked. A change may come in parts: nothing is known before the first.
  changed(asked) {
    if (!this.now || !asked) return [];
    return Object.keys(asked).filter((name) => name in this.now && !this.same(name, asked[name], this.now[name]));
  },
  same(name, was, is) {
    if (name === "video") return this.sameClip(was, is);
    if (name === "question") return was === (is || "").trim();
    if (name === "methods") return JSON.stringify([...was].sort()) === JSON.stringify([...(is || [])].sort());
    return was === is || (typeof was === "number" && Number(is) === was);
  },
  // Uploads are kept in folders named by their content; an example's folder is another one once it was run.
  sameClip(was, is) {
    const file = is && (is.video || is);
    const parts = ((file && file.path) || "").split("/").slice(-2);
    const [folder, name] = was.split("/").slice(-2);
    const both = [folder, parts[0]].every((one) => /^[0-9a-f]{64}$/.test(one));
    return parts[1] === name && (!both || parts[0] === folder);
  },
};
