"""A rendered world of things on a table: scenes from a seed, exact questions about them, and training on them."""
