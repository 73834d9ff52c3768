"""Means with a growing memory, of directions (slow momentum) and weights; primal averaging."""
