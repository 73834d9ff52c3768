"""Settings that must stand before JAX is imported."""

import os

# LAPACK's own threads wait for each other inside a refresh when the cores are busy.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
