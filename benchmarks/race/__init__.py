"""A race: tuning, targets, what came out, its picture."""
