"""The web page: Gradio blocks, their callbacks and the named API endpoint."""
