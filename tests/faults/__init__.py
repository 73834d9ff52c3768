"""Faults that training meets; benchmarks/README.md has the table of what becomes of each."""
