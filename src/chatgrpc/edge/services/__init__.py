"""The unary services: one file each. Thin: they check a request's form, hand writes to the backend, and read the log."""
