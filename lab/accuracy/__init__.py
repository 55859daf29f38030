"""Accuracy on synthetic clips, ablations, and attention over time."""
