"""python -m benchmarks triggers, ablation and transforms."""

from types import ModuleType

import click

from benchmarks.methods import METHODS
from benchmarks.methods.method import TRANSFORM_TASKS
from benchmarks.race import grids, tuning
from benchmarks.race.commands import OUTPUT, STEPS, held_at_settings
from benchmarks.race.outcome import RATIO
from benchmarks.runs.store import RESULTS, held_in
from benchmarks.studies import parts, study, transforms, which_trigger
from benchmarks.tasks import TASKS, get_task
from benchmarks.terminal import console, names_in

_ROWS = click.option("--methods", help="Comma-separated: only their rows, into a committed table.")


def _study_command(name: str, kind: ModuleType, words: str) -> click.Command:
    @click.command(name, help=f"{words} on TASK; {name}.json. {_KEPT}")
    @click.argument("task_name", metavar="TASK", type=click.Choice(list(TASKS)))
    @click.option("--seeds", type=click.IntRange(1, len(grids.RACE_SEEDS)), show_default=True,
                  default=len(grids.FEW_RACE_SEEDS), help="The first of the race's.")  # fmt: skip
    @click.option("--tuning", "on_tuning_seeds", is_flag=True,
                  help="On the tuning seeds, for choosing defaults.")  # fmt: skip
    @_ROWS
    @STEPS
    @OUTPUT
    def command(task_name, seeds, on_tuning_seeds, methods, steps, output):
        task = get_task(task_name)
        ours = [METHODS["constant"], *(METHODS[method] for method in study.READINGS.values())]
        try:
            tuned = tuning.load(task) if steps is None else tuning.quick_settings(task, ours)
            plan = study.plan(task, tuned)
        except (FileNotFoundError, ValueError) as error:
            raise click.ClickException(str(error)) from error
        chosen = (grids.tuning_seeds(task) if on_tuning_seeds else grids.RACE_SEEDS)[:seeds]
        all_seeds = set(grids.FEW_RACE_SEEDS) <= set(chosen)
        counts = tuning.is_evidence(task, tuned, is_whole=steps is None, all_seeds=all_seeds)
        suffix = "-tuning" if steps is None and on_tuning_seeds else "-quick"
        path = RESULTS / f"{name}.json" if counts else output / f"{name}{suffix}.json"
        task = task.shortened(steps) if steps else task
        variants, table = kind.variants(task), held_in(path, "tasks").get(task.name, {})
        if methods:
            if not counts or not table or not study.alike(table, plan, chosen):
                raise click.UsageError(f"--methods: no table of {name} has these targets and seeds")
            asked = names_in(methods, [v.name for v in variants if v.part != "fixed"], "row")
            variants, plan = [v for v in variants if v.name in asked], plan._replace(settings={})
        held = study.hold(task, variants, plan, chosen, output, is_evidence=counts)
        table = study.with_rows(kind, table, held) if methods else kind.table_of(held)
        study.merge(path, kind.RULE, task.name, table)
        study.print_tables(kind, {task.name: table}, console)
        console.print(f"Wrote {path}")

    return command


_KEPT = (
    "Finished runs are kept, so an interrupted study goes on where it was. Written to the "
    "committed results, or to the output folder if it is no evidence."
)
compare_triggers = _study_command(
    "triggers", which_trigger, "Our trigger, rival ones and a grid of fixed switch times"
)
compare_parts = _study_command("ablation", parts, "The protocol with one part changed at a time")


@click.command("transforms")
@click.option("--tasks", help="Comma-separated; all by default.")
@_ROWS
@click.option("--seeds", type=click.IntRange(1), default=transforms.SEEDS, show_default=True)
@STEPS
@OUTPUT
def compare_transforms(tasks, methods, seeds, steps, output) -> None:
    """Single transformations against Adam; transforms.json, where `triggers` would write.

    Who has no committed setting is tuned on one seed, and its row says how. Runs are shared with
    `race` where the output folder is the same.
    """
    for name in names_in(tasks, TRANSFORM_TASKS, "task"):
        task = get_task(name)
        adam, *rivals = transforms.contestants(task)
        asked = names_in(methods, [rival.name for rival in rivals], "method")
        task = task.shortened(steps) if steps else task
        held = held_at_settings(
            task, [adam, *(r for r in rivals if r.name in asked)], lambda _: range(seeds), output,
            is_whole=not steps, all_seeds=seeds >= transforms.SEEDS, shortly=True,
            rounds=transforms.ROUNDS,
        )  # fmt: skip
        path = RESULTS / "transforms.json" if held.evidence else output / "transforms-quick.json"
        begun = held_in(path, "tasks").get(name, {}) if methods and held.evidence else {}
        if begun and begun["data"] != task.digest:
            raise click.UsageError(f"--methods: the table of {name} is of other data")
        table = transforms.table_of(held, begun)
        study.merge(path, RATIO, name, table)
        transforms.print_tables({name: table}, console)
        console.print(f"Wrote {path}")
