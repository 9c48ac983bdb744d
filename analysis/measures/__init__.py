"""One module a measurement: its options, and what it does to a run."""
