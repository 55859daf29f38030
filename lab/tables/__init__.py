"""How stored results read: every table and page of docs/results, made from the JSON alone."""
