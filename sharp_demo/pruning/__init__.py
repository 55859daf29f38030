"""Which visual tokens survive: the pruning runtime and one module per method. Imports nothing by itself."""
