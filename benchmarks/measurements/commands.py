"""python -m benchmarks stream, calibration, sketch and overhead."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import jax
from rich.console import Console

from benchmarks.measurements import (
    calibration,
    memory,
    on_paper,
    overhead,
    probe_accuracy,
    scaling,
    stream,
)
from benchmarks.measurements import revision as revisions
from benchmarks.measurements.calibration import tables as calibration_tables
from benchmarks.measurements.workloads import WORKLOADS
from benchmarks.runs.store import RESULTS, environment, held_in, write_json
from benchmarks.tasks import get_task
from benchmarks.terminal import console, names_in

_DRAWS, _ROUNDS = 200, 15  # of `sketch`
_OUTPUT = click.option("--output", type=click.Path(path_type=Path, file_okay=False, writable=True),
                       help="By default the committed results; runs for a look.")  # fmt: skip


@click.command("stream")
@click.option("--rows", type=click.IntRange(8), default=stream.ROWS, show_default=True)
@_OUTPUT
def measure_stream(rows, output) -> None:
    """Rows of the default probe against rows at fixed parameters; writes stream.json."""
    with console.status("starting") as status:
        results = stream.measure(get_task("digits_vit"), rows=rows, announce=status.update)
    _write(_path("stream", output, rows == stream.ROWS), results, stream.print_table)


@click.command("calibration")
@click.option("--runs", type=click.IntRange(4), default=calibration.RUNS, show_default=True)
@click.option("--windows", type=click.IntRange(8), default=calibration.WINDOWS, show_default=True)
@_OUTPUT
def calibrate(runs, windows, output) -> None:
    """False alarms and delays of the triggers on synthetic streams; writes calibration.json."""
    with console.status("starting") as status:
        results = calibration.measure(runs, windows, announce=status.update)
    is_whole = (runs, windows) == (calibration.RUNS, calibration.WINDOWS)
    path = _path("calibration", output, is_whole)
    _write(path, results, calibration_tables.print_tables)


@click.command("sketch")
@click.option("--draws", type=click.IntRange(2), default=_DRAWS, show_default=True)
@click.option("--rounds", type=click.IntRange(2), default=_ROUNDS, show_default=True)
@click.option("--sizes", help="Comma-separated, of those timed; all by default.")
@_OUTPUT
def measure_sketch(draws, rounds, sizes, output) -> None:
    """Probes against dense truth and against matfree and traceax; writes sketch.json."""
    chosen = names_in(sizes, list(probe_accuracy.LAYERS), "size")
    with console.status("starting") as status:
        results = probe_accuracy.measure(draws=draws, rounds=rounds, sizes=chosen,
                                         announce=status.update)  # fmt: skip
    path = _path("sketch", output, (draws, rounds, sizes) == (_DRAWS, _ROUNDS, None))
    _write(path, results, probe_accuracy.print_tables)


@click.command("overhead")
@click.option("--workloads", help="Comma-separated; all by default.")
@click.option("--parts", help="Comma-separated, such as lanczos; all of a workload by default.")
@click.option("--rounds", type=click.IntRange(2), help="Each workload's own by default.")
@_OUTPUT
def measure_overhead(workloads, parts, rounds, output) -> None:
    """What probes and controller add to a training step; writes overhead.json.

    What is in that file of other workloads and parts stays there.
    """
    path, asked = _path("overhead", output, rounds is None), []
    for name in names_in(workloads, list(WORKLOADS), "workload"):
        workload = WORKLOADS[name]()
        asked.append((workload, names_in(parts, list(overhead.parts(workload)), "part")))
    rows: Any = held_in(path, "rows")
    with console.status("starting") as status:
        for workload, chosen in asked:
            status.update(f"overhead on {workload.name}")
            rows = overhead.merged(rows, overhead.measure(workload, rounds, chosen))
            write_json(path, {"rows": rows})
    _write(path, {"rows": rows}, overhead.print_tables)


@click.command("memory")
@_OUTPUT
def measure_memory(output) -> None:
    """The memory ladder on GPT-2's shape; writes memory.json."""
    rows = list(map(memory.measure, memory.LADDER))
    results = {"rows": rows, "environment": environment()}
    _write(_path("memory", output, True), results, memory.print_table)


@click.command("scaling")
@click.option("--hosts", help="On each of several: 'auto', or ADDRESS:PORT,COUNT,NUMBER.")
@click.option("--layouts", help="Comma-separated; all by default.")
@click.option("--optimizers", help="Comma-separated; all by default.")
@click.option("--size", type=(int, int), default=(128, 8), help="Width and layers.")
@click.option("--steps", default=0, show_default=True, help="To time.")
@_OUTPUT
def measure_scaling(hosts, layouts, optimizers, size, steps, output) -> None:
    """Collectives by layout and optimizer, and steps on paper; writes scaling.json."""
    address, *numbers = ("",) if hosts in (None, "auto") else hosts.split(",")
    counts: Any = [int(number) for number in numbers]
    jax.config.update("jax_num_cpu_devices", scaling.SIMULATED // (*counts, 1)[0])
    if hosts:
        jax.distributed.initialize(address or None, *counts)
    chosen = names_in(layouts, list(scaling.LAYOUTS), "layout")
    named = names_in(optimizers, list(scaling.OPTIMIZERS), "optimizer")
    rows = scaling.rows(chosen, named, *size, steps)
    is_whole = not (hosts or layouts or optimizers) and jax.default_backend() == "cpu"
    rows += scaling.two_processes(named) if is_whole else []
    results = {"rows": rows, "environment": environment()}
    results |= {"on_paper": on_paper.on_paper(rows)} if is_whole else {}
    if jax.process_index() == 0:
        _write(_path("scaling", output, is_whole), results, scaling.print_tables)


@click.command("revision")
@click.argument("revision")
@_OUTPUT
def compare_revision(revision, output) -> None:
    """This tree's default runs, step times and compile times over those of a git REVISION."""
    with console.status("compiling and timing both"):
        results = revisions.measure(revision)
    _write(_path("revision", output, True), results,
           lambda results, console: console.print_json(data=results["rows"]))  # fmt: skip


def _path(name: str, output: Path | None, is_whole: bool) -> Path:
    """A look must not take the place of what is committed."""
    return (output or (RESULTS if is_whole else Path("runs"))) / f"{name}.json"


def _write(path: Path, results: Any, print_tables: Callable[[Any, Console], None]) -> None:
    write_json(path, results)
    print_tables(results, console)
    console.print(f"Wrote {path}")


COMMANDS = (
    measure_stream, calibrate, measure_sketch, measure_overhead, measure_memory, measure_scaling,
    compare_revision,
)  # fmt: skip
