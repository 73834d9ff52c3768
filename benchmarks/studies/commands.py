"""python -m benchmarks triggers, ablation and transforms."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import click

from benchmarks.methods import METHODS
from benchmarks.methods.method import TRANSFORM_TASKS
from benchmarks.race import grids, quick, tuning
from benchmarks.race.commands import OUTPUT, STEPS, TUNE, held_at_settings
from benchmarks.race.evidence import is_evidence
from benchmarks.report.text import restored
from benchmarks.runs.store import RESULTS, held_in, write_json
from benchmarks.studies import parts, study, transforms, which_trigger
from benchmarks.tasks import TASKS, get_task
from benchmarks.terminal import console, names_in, progress_bar


def _options(command):
    for option in (
        OUTPUT,
        STEPS,
        click.option("--seeds", type=click.IntRange(1, len(grids.RACE_SEEDS)), show_default=True,
                     default=len(grids.FEW_RACE_SEEDS), help="The first of the race's."),
        click.option("--tuning", "on_tuning_seeds", is_flag=True,
                     help="On the tuning seeds: for choosing defaults, the race's kept unseen."),
        click.argument("task_name", metavar="TASK", type=click.Choice(list(TASKS))),
    ):  # fmt: skip
        command = option(command)
    return command


@click.command("triggers")
@_options
def compare_triggers(**options) -> None:
    """Our trigger, rival ones and a grid of fixed switch times on TASK; triggers.json.

    Finished runs are kept, so an interrupted comparison goes on where it was. Written to the
    committed results, or to the output folder if it is no evidence.
    """
    _study(which_trigger, "triggers", **options)


@click.command("ablation")
@_options
def compare_parts(**options) -> None:
    """The protocol on TASK with one part changed at a time; ablation.json.

    Finished runs and the result are kept as those of `triggers`.
    """
    _study(parts, "ablation", **options)


def _study(
    kind: ModuleType,
    name: str,
    task_name: str,
    seeds: int,
    on_tuning_seeds: bool,
    steps: int | None,
    output: Path,
) -> None:
    task = get_task(task_name)
    try:
        ours = [METHODS["constant"], *(METHODS[name] for name in study.READINGS.values())]
        tuned = tuning.load(task) if steps is None else quick.settings(task, ours)
        plan = study.plan(task, tuned)
    except (FileNotFoundError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    chosen = (grids.tuning_seeds(task) if on_tuning_seeds else grids.RACE_SEEDS)[:seeds]
    all_seeds = set(grids.FEW_RACE_SEEDS) <= set(chosen)
    counts = is_evidence(task, tuned, is_whole=steps is None, all_seeds=all_seeds)
    task = task.shortened(steps) if steps else task
    variants = kind.variants(task)
    total = study.num_runs(plan, variants, chosen) * task.num_steps
    with progress_bar(name, total) as reports:
        held = study.hold(task, variants, plan, chosen, output, is_evidence=counts, **reports)
    table = kind.table_of(held)
    suffix = "-tuning" if steps is None and on_tuning_seeds else "-quick"
    path = RESULTS / f"{name}.json" if counts else output / f"{name}{suffix}.json"
    study.merge(path, kind.RULE, task.name, table)
    study.print_tables(kind, {task.name: table}, console)
    console.print(f"Wrote {path}")


@click.command("transforms")
@click.option("--tasks", help="Comma-separated; all by default.")
@click.option("--methods", help="Comma-separated; all by default.")
@click.option("--seeds", type=click.IntRange(1), default=transforms.SEEDS, show_default=True)
@TUNE
@STEPS
@OUTPUT
def compare_transforms(tasks, methods, seeds, tune, steps, output) -> None:
    """Single transformations against Adam; writes transforms.json and transforms.md.

    Runs are shared with `race` where the output folder is the same. Tables of other tasks that
    are in transforms.json already stay there.
    """
    races = []
    for name in names_in(tasks, TRANSFORM_TASKS, "task"):
        task = get_task(name)
        known = {method.name: method for method in transforms.contestants(task)}
        asked = {"constant", *names_in(methods, list(known), "method")}
        task = task.shortened(steps) if steps else task
        held = held_at_settings(
            task, [known[n] for n in known if n in asked], lambda _: range(seeds), output,
            is_whole=not steps, all_seeds=seeds >= transforms.SEEDS, tune=tune,
            rounds=transforms.ROUNDS,
        )  # fmt: skip
        races.append(held)
    name = "transforms" if all(race.evidence for race in races) else "transforms-quick"
    path = output / f"{name}.json"
    results = transforms.results(races)
    results["tasks"] = {**held_in(path, "tasks"), **results["tasks"]}
    write_json(path, results)
    tables = restored(results["tasks"])
    path.with_suffix(".md").write_text(transforms.markdown(tables))
    transforms.print_tables(tables, console)
    console.print(f"Wrote {path} and {path.with_suffix('.md')}")
