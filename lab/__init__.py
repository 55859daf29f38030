"""The laboratory: what the methods cost and what they keep. It imports sharp_demo, never the other way round."""
