"""python -m benchmarks: list what there is, hold a race, measure the probes."""

from __future__ import annotations

from pathlib import Path

import click
from rich.progress import Progress
from rich.table import Table

from benchmarks import (
    calibration,
    grids,
    overhead,
    picture,
    quick,
    sketch,
    stream,
    transforms,
    tuning,
)
from benchmarks import race as racing
from benchmarks.calibration import tables as calibration_tables
from benchmarks.methods import METHODS, Method, available, contestants
from benchmarks.report import page, race_tables, readme
from benchmarks.report.reading import read
from benchmarks.report.text import restored
from benchmarks.runner import ROOT, held_in, write_json
from benchmarks.study_commands import compare_parts, compare_triggers
from benchmarks.tasks import IN_A_FOLDER, TASKS, DataError, Task, get_task
from benchmarks.terminal import bars as progress_bars
from benchmarks.terminal import console, reporters
from benchmarks.workloads import WORKLOADS

RESULTS = ROOT / "benchmarks" / "results"
_FILE, _FOLDER = click.Path(path_type=Path), click.Path(path_type=Path, exists=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Races of Friction-Guided Optimization against well-tuned rivals."""


@main.command("list")
def list_all() -> None:
    """Tasks and methods."""
    tasks = Table("task", "metric", "T", "batch", title="Tasks", title_justify="left")
    for name in TASKS:
        task = get_task(name)
        tasks.add_row(name, task.metric, str(task.num_steps), str(task.batch_size))
    contestants = Table(
        "method", "judged by", "only", "note", title="Methods", title_justify="left"
    )
    for method in METHODS.values():
        weights = f"{method.weights} weights"
        contestants.add_row(method.name, weights, _where(method), method.note)
    console.print(tasks, contestants)


def _where(method: Method) -> str:
    def words(names: str | tuple[str, ...]) -> str:
        return names if isinstance(names, str) else ", ".join(names)

    return f"not {words(method.never)}" if method.never else words(method.only)


def _chosen(task: Task, names: str | None) -> list[Method]:
    """The methods of a race; `constant` is always there, for the target and the ratios."""
    if names is None:
        methods = contestants(task)
        missing = [m.name for m in methods if not available(m)]
        if missing:
            console.print(f"Left out, fgo_jax lacks them: {', '.join(missing)}", style="yellow")
        return [m for m in methods if available(m)]
    asked = [name.strip() for name in names.split(",") if name.strip()]
    for name in asked:
        if name not in METHODS:
            raise click.BadParameter(f"no method {name!r}; there are {', '.join(METHODS)}")
        if not METHODS[name].enters(task):
            raise click.BadParameter(f"{name} does not take part in {task.name}")
    return [m for m in METHODS.values() if m.name in {"constant", *asked}]


@main.command()
@click.argument("task_name", metavar="TASK", type=click.Choice(list(TASKS)))
@click.option("--methods", help="Comma-separated; else all of a race.")
@click.option("--seeds", type=click.IntRange(1), default=len(grids.RACE_SEEDS), show_default=True)
@click.option("--quick", "is_quick", is_flag=True, help="A look in about a minute; no evidence.")
@click.option("--tune", is_flag=True, help="Choose all settings anew and write them down.")
@click.option("--steps", type=click.IntRange(1), help="Another horizon T; no evidence.")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    help=f"The folder with the data of {' or '.join(IN_A_FOLDER)}.",
)
@click.option("--output", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
def race(task_name, methods, seeds, is_quick, tune, steps, data_dir, output) -> None:
    """Races METHODS on TASK: tables here, TASK.json and TASK.png in the output folder.

    Finished runs are kept in the output folder, so an interrupted race goes on where it was.
    """
    try:
        task = get_task(task_name, data_dir) if data_dir else get_task(task_name)
        _ = task.digest  # reads the folder, if there is one
    except (DataError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    if is_quick and methods is None:
        methods = "constant,fgo" if available(METHODS["fgo"]) else "constant,cosine"
    contestants = _chosen(task, methods)
    if is_quick or steps:
        task = task.shortened(steps or task.num_steps // quick.SHORTER)
    is_whole = not (is_quick or steps)
    if is_quick:
        seeds = 1

    with progress_bars() as bars:
        held = _hold(bars, task, contestants, seeds, is_whole, tune, output, len(grids.RACE_SEEDS))
    output.mkdir(parents=True, exist_ok=True)
    name = task.name if held.evidence else f"{task.name}-quick"
    results = racing.results(held)
    write_json(output / f"{name}.json", results)
    picture.draw(held, output / f"{name}.png")
    race_tables.print_race(results, console)
    console.print(f"Wrote {output / name}.json and {output / name}.png")


def _hold(
    bars: Progress,
    task: Task,
    contestants: list[Method],
    seeds: int,
    is_whole: bool,
    tune: bool,
    output: Path,
    least_seeds: int,
    rounds: int = 7,
) -> racing.Race:
    """A race at settings that are looked up, or chosen anew, or plain for a quick look.

    It is evidence where it is whole, on the data that its settings are of, with enough seeds.
    """
    if not is_whole:
        tuned = quick.settings(task, contestants)
    elif tune:
        total = tuning.num_runs(task, contestants) * task.num_steps
        bar = bars.add_task("tuning", total=total)
        tuned = tuning.tune(task, contestants, output, **reporters(bars, bar))
        tuning.save(task, tuned)
    else:
        try:
            tuned = tuning.load(task)
        except FileNotFoundError as error:
            raise click.ClickException(str(error)) from error
        if tuned.get("data") != task.digest:
            console.print(
                f"Settings and targets of {task.name} are of other data ({tuned.get('data')}; "
                f"here {task.digest}): tune anew for evidence.",
                style="yellow",
            )
    runs = len(racing.distinct_runs(racing.plan(tuned, contestants)))
    bar = bars.add_task(f"race {task.name}", total=runs * seeds * task.num_steps)
    return racing.hold_race(
        task, tuned, contestants, range(seeds), output,
        is_evidence=is_whole and seeds >= least_seeds and tuned.get("data") == task.digest,
        rounds=rounds if is_whole else 3, **reporters(bars, bar),
    )  # fmt: skip


@main.command("transforms")
@click.option("--tasks", help="Comma-separated; all by default.")
@click.option("--methods", help="Comma-separated; all by default.")
@click.option("--seeds", type=click.IntRange(1), default=transforms.SEEDS, show_default=True)
@click.option("--tune", is_flag=True, help="Choose all settings anew and write them down.")
@click.option("--steps", type=click.IntRange(1), help="Another horizon T; no evidence.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
def compare_transforms(tasks, methods, seeds, tune, steps, output) -> None:
    """Single transformations against Adam; writes transforms.json and transforms.md.

    Runs are shared with `race` where the output folder is the same. Tables of other tasks that
    are in transforms.json already stay there.
    """
    races = []
    for name in _names(tasks, list(transforms.TASKS), "task"):
        task = get_task(name)
        known = [method.name for method in transforms.contestants(task)]
        asked = {"constant", *_names(methods, known, "method")}
        contestants = [m for m in transforms.contestants(task) if m.name in asked]
        task = task.shortened(steps) if steps else task
        with progress_bars() as bars:
            held = _hold(
                bars, task, contestants, seeds, not steps, tune, output,
                transforms.SEEDS, transforms.ROUNDS,
            )  # fmt: skip
        races.append(held)
    name = "transforms-quick" if steps else "transforms"
    path = output / f"{name}.json"
    results = transforms.results(races)
    results["tasks"] = {**held_in(path, "tasks"), **results["tasks"]}
    write_json(path, results)
    tables = restored(results["tasks"])
    (output / f"{name}.md").write_text(transforms.markdown(tables))
    transforms.print_tables(tables, console)
    console.print(f"Wrote {path} and {path.with_suffix('.md')}")


@main.command("stream")
@click.option("--rows", type=click.IntRange(8), default=stream.ROWS, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def measure_stream(rows, output) -> None:
    """Rows of the default probe against rows at fixed parameters; writes stream.json."""
    with console.status("starting") as status:
        results = stream.measure(get_task("digits_vit"), rows=rows, announce=status.update)
    write_json(output / "stream.json", results)
    stream.print_table(results, console)
    console.print(f"Wrote {output / 'stream.json'}")


@main.command("calibration")
@click.option("--runs", type=click.IntRange(4), default=calibration.RUNS, show_default=True)
@click.option("--windows", type=click.IntRange(8), default=calibration.WINDOWS, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def calibrate(runs, windows, output) -> None:
    """False alarms and delays of the triggers on synthetic streams; writes calibration.json."""
    with console.status("starting") as status:
        results = calibration.measure(runs, windows, announce=status.update)
    write_json(output / "calibration.json", results)
    calibration_tables.print_tables(results, console)
    console.print(f"Wrote {output / 'calibration.json'}")


@main.command("sketch")
@click.option("--draws", type=click.IntRange(2), default=200, show_default=True)
@click.option("--rounds", type=click.IntRange(2), default=15, show_default=True)
@click.option("--sizes", help="Comma-separated, of those timed; all by default.")
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def measure_sketch(draws, rounds, sizes, output) -> None:
    """Probes against dense truth and against matfree and traceax; writes sketch.json."""
    chosen = _names(sizes, list(sketch.LAYERS), "size")
    with console.status("starting") as status:
        results = sketch.measure(draws=draws, rounds=rounds, sizes=chosen, announce=status.update)
    write_json(output / "sketch.json", results)
    sketch.print_tables(results, console)
    console.print(f"Wrote {output / 'sketch.json'}")


@main.command("overhead")
@click.option("--workloads", help="Comma-separated; all by default.")
@click.option("--parts", help="Comma-separated, such as lanczos; all of a workload by default.")
@click.option("--rounds", type=click.IntRange(2), help="Each workload's own by default.")
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def measure_overhead(workloads, parts, rounds, output) -> None:
    """What probes and controller add to a training step; writes overhead.json.

    What is in that file of other workloads and parts stays there.
    """
    path = output / "overhead.json"
    asked = []
    for name in _names(workloads, list(WORKLOADS), "workload"):
        workload = WORKLOADS[name]()
        asked.append((name, workload, _names(parts, list(overhead.parts(workload)), "part")))
    with console.status("starting") as status:
        for name, workload, chosen in asked:
            status.update(f"overhead on {name}")
            measured = {name: overhead.measure(workload, rounds, chosen)}
            results = {"workloads": overhead.merged(held_in(path, "workloads"), measured)}
            write_json(path, results)
    overhead.print_tables(results, console)
    console.print(f"Wrote {path}")


@main.command("report")
@click.option("--results", type=_FOLDER, default=RESULTS, show_default=True)
@click.option("--readme", "readme_path", type=_FILE, default=ROOT / "README.md", show_default=True)
@click.option("--output", type=_FILE, default=Path("runs") / "report.html", show_default=True)
def report_all(results, readme_path, output) -> None:
    """All results on one page, and the README's table of the claim."""
    found = read(results)
    readme.write(readme_path, found)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page.page(found))
    for name, reason in found.unreadable.items():
        console.print(f"Not read: {name}.json ({reason})", style="yellow")
    if found.missing:
        console.print(f"Not there yet: {', '.join(found.missing)}", style="yellow")
    console.print(f"Wrote {output} ({output.stat().st_size / 1e6:.1f} MB) and {readme_path}")


def _names(given: str | None, known: list[str], what: str) -> list[str]:
    if given is None:
        return known
    asked = [name.strip() for name in given.split(",") if name.strip()]
    for name in asked:
        if name not in known:
            raise click.BadParameter(f"no {what} {name!r}; there are {', '.join(known)}")
    return asked


main.add_command(compare_triggers)
main.add_command(compare_parts)

if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
