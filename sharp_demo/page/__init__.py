"""The web page: Gradio blocks, their callbacks and the named API endpoint; it is served by `sharp_demo.web`."""
