// Asks for its row of charts when it comes near the view, once for every run.
let seen = null;
const observer = new IntersectionObserver((entries) => {
  const value = props.value;
  if (!value || value.run === seen || !entries.some((entry) => entry.isIntersecting)) return;
  seen = value.run;
  trigger("select", { index: value.row });
}, { rootMargin: "200px" });
function look() {
  observer.disconnect();
  if (props.value) observer.observe(element);
}
watch("value", look);
look();
