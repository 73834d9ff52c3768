"""Races of Friction-Guided Optimization against well-tuned rivals."""
