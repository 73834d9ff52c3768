"""python -m benchmarks: list what there is, hold a race, measure the probes."""

from __future__ import annotations

from pathlib import Path

import click
from rich.progress import Progress
from rich.table import Table

from benchmarks.measurements.commands import (
    calibrate,
    measure_overhead,
    measure_sketch,
    measure_stream,
)
from benchmarks.methods import METHODS, Method, available, contestants
from benchmarks.race import grids, picture, quick, tuning
from benchmarks.race import hold as racing
from benchmarks.report import page, race_tables, readme
from benchmarks.report.reading import read
from benchmarks.report.text import restored
from benchmarks.runs.store import RESULTS, ROOT, held_in, write_json
from benchmarks.studies import transforms
from benchmarks.studies.commands import compare_parts, compare_triggers
from benchmarks.tasks import IN_A_FOLDER, TASKS, DataError, Task, get_task
from benchmarks.terminal import bars as progress_bars
from benchmarks.terminal import console, names_in, reporters

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
@click.option(
    "--seeds",
    type=click.IntRange(1, len(grids.RACE_SEEDS)),
    default=len(grids.RACE_SEEDS),
    show_default=True,
    help="At most so many for each method; fewer than its own are no evidence. Rivals outside "
    f"the claim's tables, and all methods where runs are long, have {len(grids.FEW_RACE_SEEDS)}.",
)
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

    def seeds_of(method):
        return grids.race_seeds(task, method)[:seeds]

    has_all_seeds = all(seeds_of(m) == grids.race_seeds(task, m) for m in contestants)
    with progress_bars() as bars:
        held = _hold(bars, task, contestants, seeds_of, has_all_seeds, is_whole, tune, output)
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
    seeds_of: racing.SeedsOf,
    has_all_seeds: bool,
    is_whole: bool,
    tune: bool,
    output: Path,
    rounds: int = 7,
) -> racing.Race:
    """A race at settings that are looked up, or chosen anew, or plain for a quick look.

    It is evidence where it is whole, on the data that its settings are of, with all its seeds.
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
    runs = racing.num_runs(racing.plan(tuned, contestants), seeds_of)
    bar = bars.add_task(f"race {task.name}", total=runs * task.num_steps)
    return racing.hold_race(
        task, tuned, contestants, seeds_of, output,
        is_evidence=is_whole and has_all_seeds and tuned.get("data") == task.digest,
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
    for name in names_in(tasks, list(transforms.TASKS), "task"):
        task = get_task(name)
        known = [method.name for method in transforms.contestants(task)]
        asked = {"constant", *names_in(methods, known, "method")}
        contestants = [m for m in transforms.contestants(task) if m.name in asked]
        task = task.shortened(steps) if steps else task
        with progress_bars() as bars:
            held = _hold(
                bars, task, contestants, lambda _: range(seeds), seeds >= transforms.SEEDS,
                not steps, tune, output, transforms.ROUNDS,
            )  # fmt: skip
        races.append(held)
    name = "transforms" if all(race.evidence for race in races) else "transforms-quick"
    path = output / f"{name}.json"
    results = transforms.results(races)
    results["tasks"] = {**held_in(path, "tasks"), **results["tasks"]}
    write_json(path, results)
    tables = restored(results["tasks"])
    (output / f"{name}.md").write_text(transforms.markdown(tables))
    transforms.print_tables(tables, console)
    console.print(f"Wrote {path} and {path.with_suffix('.md')}")


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


for command in (
    compare_triggers, compare_parts,
    measure_stream, calibrate, measure_sketch, measure_overhead,
):  # fmt: skip
    main.add_command(command)

if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
