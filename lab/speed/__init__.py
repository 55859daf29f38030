"""Timed prefills of vanilla and every method, beside what exact FLOPs allow."""
