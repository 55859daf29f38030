"""What the methods cost and what they keep: accuracy on synthetic clips, ablations, attention over time."""
