"""Visual-token pruning for video LLMs, side by side: vanilla, FastV, Feather and ShaRP."""

__version__ = "0.1.0"
