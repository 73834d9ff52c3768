"""python -m benchmarks: list what there is, hold a race, study parts, measure the probes."""

import click

from benchmarks.demo import demo
from benchmarks.measurements.commands import COMMANDS as MEASUREMENTS
from benchmarks.methods import METHODS, Method
from benchmarks.race.commands import hold_race
from benchmarks.report.page import report_all
from benchmarks.studies.commands import compare_parts, compare_transforms, compare_triggers
from benchmarks.tasks import TASKS, get_task
from benchmarks.terminal import console, table


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Races of Friction-Guided Optimization against well-tuned rivals."""


@main.command("list")
def list_all() -> None:
    """Tasks and methods."""
    tasks = table("Tasks", ("task", "metric", "T", "batch"), left=2)
    for name in TASKS:
        task = get_task(name)
        tasks.add_row(name, task.metric, str(task.num_steps), str(task.batch_size))
    methods = table("Methods", ("method", "judged by", "only", "note"), left=4)
    for method in METHODS.values():
        methods.add_row(method.name, f"{method.weights} weights", _where(method), method.note)
    console.print(tasks, methods)


def _where(method: Method) -> str:
    if method.never:
        return f"not {method.never}"
    return method.only if isinstance(method.only, str) else ", ".join(method.only)


for command in (
    demo, hold_race, compare_transforms, compare_triggers, compare_parts, report_all, *MEASUREMENTS,
):  # fmt: skip
    main.add_command(command)

if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
