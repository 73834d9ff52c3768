"""Settings that must stand before JAX is imported."""

import importlib.metadata
import os
import tempfile

from hypothesis import HealthCheck, Phase, settings

from tests import quick

# LAPACK's own threads wait for each other inside a refresh when the cores are busy.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Many checks compile the very same step; its second compilation is a file's reading.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "fgo_jax-compiled-tests")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# Compiling is most of the work here, and the tests ask what a program computes, not how fast. So
# XLA takes its older, six times faster generator of CPU code, without LLVM's optimizations, and
# in one piece: split for many threads, a program costs a quarter more.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
older = ""
if int(importlib.metadata.version("jaxlib").split(".")[1]) < 11:  # a later one may not have it
    older = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
# No test reads where in the sources an operation comes from. Programs that do not say it are made
# in less time.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
# Eight devices for the tests that need them; to all others one is as fast as before. A process
# that is started from here has them too, unless a later flag says another number. They are CPUs:
# with JAX_PLATFORMS=cuda the tests of many devices need as many accelerators.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
devices = "--xla_force_host_platform_device_count=8"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {devices} {older}".strip()

# A core for each worker of pytest-xdist. On two, the threads of XLA's pool would look for work at
# each other all the time, since operations are tiny: a sixth of the CPU time.
worker = os.environ.get("PYTEST_XDIST_WORKER", "")
if worker and hasattr(os, "sched_setaffinity"):  # not everywhere
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

quick.build()

# Tests run or import these, so there is nothing to collect.
collect_ignore_glob = ["*_program.py"]

# The first example of a property compiles its program, so no example has a deadline. The checks
# are the same at every run; `--hypothesis-profile=thorough` draws ten times as many, and others.
settings.register_profile(
    "checks",
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=True,
    phases=[phase for phase in Phase if phase is not Phase.explain],  # which traces every line
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "thorough", settings.get_profile("checks"), max_examples=2000, derandomize=False
)
settings.load_profile("checks")


def pytest_collection_modifyitems(items):
    """Long files begin first, so that no worker ends alone: slow ones, then those at the top."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in slow, len(item.path.parts)))
