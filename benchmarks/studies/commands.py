"""python -m benchmarks triggers and ablation."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import click

from benchmarks.race import grids
from benchmarks.runs.store import RESULTS
from benchmarks.studies import parts as ablation
from benchmarks.studies import study
from benchmarks.studies import which_trigger as triggers
from benchmarks.tasks import TASKS, get_task
from benchmarks.terminal import bars, console, reporters


def _options(command):
    for option in (
        click.option("--output", type=click.Path(path_type=Path), default=Path("runs"),
                     show_default=True, help="Where finished runs are kept."),
        click.option("--steps", type=click.IntRange(1), help="Another horizon T; no evidence."),
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
    _study(triggers, "triggers", **options)


@click.command("ablation")
@_options
def compare_parts(**options) -> None:
    """The protocol on TASK with one part changed at a time; ablation.json.

    Finished runs and the result are kept as those of `triggers`.
    """
    _study(ablation, "ablation", **options)


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
        plan = study.plan(task, steps is None)
    except (FileNotFoundError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    if not plan.same_data:
        console.print(
            f"Settings and targets of {task.name} are of other data: tune anew for evidence.",
            style="yellow",
        )
    chosen = (grids.tuning_seeds(task) if on_tuning_seeds else grids.RACE_SEEDS)[:seeds]
    enough = set(grids.FEW_RACE_SEEDS) <= set(chosen)
    is_evidence = plan.same_data and steps is None and enough
    task = task.shortened(steps) if steps else task
    variants = kind.variants(task)
    with bars() as shown:
        runs = study.num_runs(plan, variants, chosen)
        bar = shown.add_task(name, total=runs * task.num_steps)
        held = study.hold(
            task, variants, plan, chosen, output, is_evidence=is_evidence, **reporters(shown, bar)
        )
    table = kind.table_of(held)
    suffix = "-tuning" if steps is None and on_tuning_seeds else "-quick"
    path = RESULTS / f"{name}.json" if is_evidence else output / f"{name}{suffix}.json"
    study.merge(path, kind.RULE, task.name, table)
    study.print_tables(kind, {task.name: table}, console)
    console.print(f"Wrote {path}")
