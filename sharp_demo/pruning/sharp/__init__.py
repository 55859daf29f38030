"""ShaRP (arXiv 2512.05385): segment-aware causal mask, positional bias calibration, register token deduplication."""

from sharp_demo.pruning.sharp.method import ShaRP

__all__ = ["ShaRP"]
