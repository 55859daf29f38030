"""Plain-data results to Plotly figures, frame overlays and the HTML report. No torch, no Gradio."""
