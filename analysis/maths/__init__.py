"""Arrays in, numbers out: no model, no record."""
