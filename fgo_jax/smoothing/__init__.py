"""Means with a growing memory: of directions (slow momentum) and of weights."""
