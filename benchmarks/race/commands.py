"""python -m benchmarks race."""

from collections.abc import Sequence
from pathlib import Path

import click

from benchmarks.methods import METHODS, Method, contestants
from benchmarks.race import grids, hold, picture, tuning
from benchmarks.race.outcome import as_json
from benchmarks.report.race_tables import print_race
from benchmarks.runs.store import write_json
from benchmarks.tasks import IN_A_FOLDER, TASKS, DataError, Task, get_task
from benchmarks.terminal import console, names_in

OUTPUT = click.option("--output", type=click.Path(path_type=Path, file_okay=False, writable=True),
                      default="runs", show_default=True, help="Where runs are kept.")  # fmt: skip
STEPS = click.option("--steps", type=click.IntRange(1), help="Another horizon T; no evidence.")


@click.command("race")
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
@STEPS
@click.option("--data-dir", type=click.Path(path_type=Path),
              help=f"The folder with the data of {' or '.join(IN_A_FOLDER)}.")  # fmt: skip
@OUTPUT
def hold_race(task_name, methods, seeds, is_quick, tune, steps, data_dir, output) -> None:
    """Races METHODS on TASK: tables here, TASK.json and two pictures in the output folder.

    Finished runs are kept in the output folder, so an interrupted race goes on where it was.
    """
    try:
        task = get_task(task_name, data_dir) if data_dir else get_task(task_name)
        _ = task.digest  # reads the folder, if there is one
    except (DataError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    chosen = chosen_methods(task, "fgo" if is_quick and methods is None else methods)
    if is_quick or steps:
        task = task.shortened(steps or task.num_steps // tuning.SHORTER)

    def seeds_of(method):
        return grids.race_seeds(task, method)[: 1 if is_quick else seeds]

    held = held_at_settings(
        task, chosen, seeds_of, output, is_whole=not (is_quick or steps), tune=tune,
        all_seeds=all(seeds_of(m) == grids.race_seeds(task, m) for m in chosen),
    )  # fmt: skip
    name, found = task.name if held.evidence else f"{task.name}-quick", as_json(held)
    write_json(output / f"{name}.json", found)
    picture.draw(found, output / f"{name}.png")
    phased = [e for e in held.entries[held.levels[0].name].values() if e.method.phased]
    if phased:
        picture.draw_run(phased[0], output / f"{name}-run.png")
    print_race(found, console)
    console.print(f"Wrote {output / name}.json and {name}{'.png and -run' * bool(phased)}.png")


def chosen_methods(task: Task, names: str | None) -> list[Method]:
    """The methods of a race; `constant` is always there, for the target and the ratios."""
    if names is None:
        return contestants(task)
    known = [name for name, method in METHODS.items() if method.enters(task)]
    asked = {"constant", *names_in(names, known, "method")}
    return [METHODS[name] for name in known if name in asked]


def held_at_settings(
    task: Task, methods: Sequence[Method], seeds_of: hold.SeedsOf, output: Path, *, is_whole: bool,
    all_seeds: bool, tune: bool = False, shortly: bool = False, rounds: int = 7,
) -> hold.Race:  # fmt: skip
    """A race at settings that are looked up (or else tuned `shortly`), chosen anew, or plain."""
    if not is_whole:
        tuned = tuning.quick_settings(task, methods)
    elif tune:
        tuned = tuning.tune(task, methods, output)
    else:
        try:
            tuned = tuning.load(task)
        except FileNotFoundError as error:
            raise click.ClickException(str(error)) from error
        known = tuned["methods"]
        for method in (m for m in methods if shortly and m.name not in known):
            known[method.name] = tuning.tuned_shortly(task, method, tuned, output)
    counts = tuning.is_evidence(task, tuned, is_whole=is_whole, all_seeds=all_seeds)
    return hold.hold_race(
        task, tuned, methods, seeds_of, output,
        is_evidence=counts, rounds=rounds if is_whole else 3,
    )  # fmt: skip
