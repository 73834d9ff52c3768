"""Limits on the length of a step, measured along the proposed update."""
