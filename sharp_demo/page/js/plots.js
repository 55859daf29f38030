// Gradio redraws a plot at every update and leaves the old one's resize listener on the window, and with it the
// whole old plot: 3 MB a comparison, for as long as the page is open.
new MutationObserver((records) => {
  for (const record of records) {
    for (const node of record.removedNodes) {
      if (node.nodeType !== Node.ELEMENT_NODE) continue;
      const plots = node.matches(".js-plotly-plot") ? [node] : node.querySelectorAll(".js-plotly-plot");
      for (const plot of plots) window.removeEventListener("resize", plot._responsiveChartHandler);
    }
  }
}).observe(document, { childList: true, subtree: true });
