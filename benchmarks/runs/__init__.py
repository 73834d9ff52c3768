"""Training runs: one run, the store of finished ones, step times."""
