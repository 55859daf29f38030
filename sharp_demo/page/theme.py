"""The page's look: system fonts only, so that nothing is fetched."""

from __future__ import annotations

import gradio as gr

FONT = ["system-ui", "-apple-system", "Segoe UI", "sans-serif"]
MONO = ["ui-monospace", "Menlo", "monospace"]

CSS = """
.gradio-container { padding: 8px !important; }
.gradio-container > .main { padding: 8px 16px; }
#title h1 { margin: 0; font-size: 22px; }
#title p { margin: 0; max-width: 150ch; font-size: 14px; color: var(--body-text-color-subdued); }
#inputs { max-width: 330px; }
#clip video { max-height: 150px; }
#columns .html-container, #examples .html-container, #clip-line .html-container { padding: 0; }
.js-plotly-plot text:not(.hoverlayer text) { fill: var(--body-text-color) !important; }
#modes .tabitem { padding-top: 6px; }
#json-file, #report-file { display: none; }
@media (prefers-reduced-motion: reduce) {
  *, ::before, ::after { animation-duration: .01ms !important; animation-iteration-count: 1 !important;
    transition-duration: .01ms !important; scroll-behavior: auto !important; }
}
@media (max-width: 600px) {
  .gradio-container > .main { padding: 4px !important; }
  #title p { font-size: 13px; }
  #charts .prose { display: none; }
  #charts .charts { flex-wrap: nowrap; overflow-x: auto; scroll-snap-type: x proximity; }
  #charts .charts > * { flex: 0 0 92%; scroll-snap-align: start; }
  #main { padding-bottom: 60px; }
  /* Run is at hand wherever one is. */
  #run-row { position: fixed; left: 0; right: 0; bottom: 0; z-index: 20; padding: 8px 12px;
    background: var(--body-background-fill); border-top: 1px solid var(--border-color-primary); }
}
@media (max-width: 900px) {
  #main { flex-direction: column; align-items: stretch; }
  #main > #results { order: -1; }
  .modebar { display: none !important; }
  #main > .column { width: 100%; max-width: 100%; min-width: 0 !important; flex: none; }
}
"""


def make_theme() -> gr.themes.Base:
    """Return the theme of the page, light and dark."""
    return gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=FONT, font_mono=MONO).set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        button_primary_background_fill="#2563c9",
        button_primary_background_fill_hover="#1d52ab",
        button_primary_background_fill_dark="#2563c9",
        button_primary_text_color="#ffffff",
    )
