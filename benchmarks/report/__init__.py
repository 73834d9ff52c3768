"""Results as tables and pictures: in the terminal, on one page, in benchmarks/README.md."""
