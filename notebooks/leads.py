"""What moves before a network generalises: signals of ten runs that do, and of ten that cannot.

`python -m notebooks.leads` trains all of them (about ten minutes on a core) and writes leads.json;
grokking.ipynb draws single runs and reads that table.
"""

import dataclasses
import functools
import json
import re
import statistics
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.methods.method import Method
from benchmarks.methods.three_phases import target_acquisition
from benchmarks.runs.store import environment
from benchmarks.runs.training import train
from benchmarks.tasks import get_task
from fgo_jax import probes

SEEDS = range(10)
RATE = 0.0028  # tuned for these phases on this task, on other seeds
EVERY = 20  # steps from one commutator to the next
KINDS = ("addition", "random labels")
CURVES = (
    "step", "training", "held_out", "phase", "intrinsic_dimension", "agreement", "path_dimension",
    "walk_dimension", "path_rank", "walk_rank", "commutator_defect", "commutator_share",
    "random_share", "weight_norm_square", "rescale_gap",
)  # fmt: skip
RESULTS = Path(__file__).parent / "leads.json"
TASK = dataclasses.replace(get_task("modular_addition"), num_steps=1200)
PAIRS = 113**2 // 4  # for training: with 40 % of the table, as raced, both losses fall together
CHANCE = float(np.log(113))  # nats that guessing costs


@functools.cache
def data_of(kind: str) -> Any:
    """Pairs with their sums, or with their labels shuffled: then there is nothing to find."""
    data = TASK.data(0)
    train = jax.tree.map(lambda rows: rows[:PAIRS], data["train"])
    if kind == "random labels":
        train["label"] = jax.random.permutation(jax.random.key(7), train["label"])
    return {**data, "train": train}


def build(task: Any, hyperparameters: Any) -> Any:
    """The three phases, with three probes in one run."""
    probe = probes.joined(
        probes.gradient_stream(),
        probes.trajectory(growth=0.02),
        probes.commutator(task.loss, EVERY, examples=task.batch_size),
    )
    return target_acquisition(task, hyperparameters, probe=probe)


METHOD = Method("grokking", build, phased=True, needs_batch=True)
TASKS = {kind: dataclasses.replace(TASK, data=lambda seed, kind=kind: data_of(kind))
         for kind in KINDS}  # fmt: skip


def squares(params: Any) -> dict[str, jax.Array]:
    """Squared lengths of all weights, and of the two sides of each rescaling symmetry."""
    total = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params))
    block = params["block_0"]
    sides = (
        (block["LayerNorm_0"], block["qkv"]["kernel"]),
        (block["LayerNorm_1"], block["up"]["kernel"]),
        (params["LayerNorm_0"], params["head"]["kernel"]),
    )
    length = lambda tree: sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree))  # noqa: E731
    gaps = [length(norm) - length(kernel) for norm, kernel in sides]
    return {"weight_norm_square": total, "rescale_gap": functools.reduce(jnp.add, gaps)}


def followed(kind: str, seed: int) -> dict[str, np.ndarray]:
    """Every signal, the losses and the phase at each evaluation of a run."""
    found: list[Any] = []
    measure = jax.jit(squares)
    curves = train(TASKS[kind], METHOD, {"learning_rate": RATE}, seed,
                   watch=lambda carry, record: found.append(measure(carry.params)))  # fmt: skip
    lengths = jax.tree.map(lambda *each: np.asarray(each), *jax.device_get(found))
    return {**curves.telemetry, **lengths, "step": curves.steps, "held_out": curves.raw,
            "training": curves.train}  # fmt: skip


def first(steps: np.ndarray, holds: np.ndarray) -> float | None:
    """The step at which a condition first holds at two evaluations in a row."""
    both = np.flatnonzero(holds[1:] & holds[:-1])
    return float(steps[both[0] + 1]) if both.size else None


def onset(run: dict[str, np.ndarray]) -> float | None:
    """Of the commutator: above 20 and ten times the median of its first three values."""
    defect, step = run["commutator_defect"], run["step"]
    changed = np.flatnonzero(np.isfinite(defect) & (defect != np.roll(defect, 1)))
    if len(changed) < 3:
        return None
    level = max(20.0, 10.0 * float(np.median(defect[changed[:3]])))
    above = changed[defect[changed] > level]
    return float(step[above[0]]) if above.size else None


def fired(run: dict[str, np.ndarray]) -> dict[str, float | None]:
    """The step at which each rule fires. All were fixed before a jump was looked at.

    The share of the table and the number of steps were chosen so that there is a jump.
    """
    step, norm, dimension = (run[n] for n in ("step", "weight_norm_square", "intrinsic_dimension"))

    def began(phase: int) -> float | None:
        return first(step, run["phase"] >= phase)

    return {
        "acquisition ends (dimension falls slowly)": began(1),
        "re-ask ends (agreement below 0.75)": began(2),
        "commutator defect above 20 and ten times its start": onset(run),
        "path has fewer dimensions than a random walk's": first(
            step, run["path_dimension"] < run["walk_dimension"]
        ),
        "path has a lower rank than a random walk's": first(
            step, run["path_rank"] < run["walk_rank"]
        ),
        "dimension below a tenth of its largest": first(
            step, dimension < 0.1 * np.fmax.accumulate(dimension)
        ),
        "weights a hundredth longer than at their shortest": first(
            step, norm > 1.01 * np.minimum.accumulate(norm)
        ),
        "training loss below a tenth of guessing": first(step, run["training"] < 0.1 * CHANCE),
    }


def jump(run: dict[str, np.ndarray]) -> float | None:
    """The step at which the validation loss is below half of what guessing costs."""
    return first(run["step"], run["held_out"] < 0.5 * CHANCE)


def table(runs: dict[str, list[tuple[float | None, dict[str, float | None]]]]) -> dict[str, Any]:
    """Leads over the jump where there is one, and how often a rule fires where there is none."""
    rows = {}
    alarms = [found for at, found in runs["random labels"] if at is None]
    for rule in runs["addition"][0][1]:
        pairs = [(at, found[rule]) for at, found in runs["addition"] if at is not None]
        leads = sorted(at - step for at, step in pairs if step is not None)
        rows[rule] = {
            "fired": f"{len(leads)}/{len(pairs)}",
            "lead": {"median": statistics.median(leads), "low": leads[0], "high": leads[-1]}
            if leads
            else None,
            "false alarms": f"{sum(found[rule] is not None for found in alarms)}/{len(alarms)}",
            "steps": [found[rule] for _, found in runs["addition"]],
            "steps without a rule to learn": [found[rule] for _, found in runs["random labels"]],
        }
    jumps = {kind: [at for at, _ in runs[kind]] for kind in KINDS}
    return {"rate": RATE, "seeds": list(SEEDS), "num_steps": TASK.num_steps, "jumps": jumps,
            "rows": rows}  # fmt: skip


def thinned(run: dict[str, np.ndarray]) -> dict[str, list[float | None]]:
    """Some curves of a run, at every second evaluation; None where nothing was measured."""

    def short(values: np.ndarray) -> list[float | None]:
        return [float(f"{x:.4g}") if np.isfinite(x) else None for x in values[1::2].tolist()]

    return {name: short(run[name]) for name in CURVES}


def main() -> None:
    runs: dict[str, list[Any]] = {kind: [] for kind in KINDS}
    curves = {}
    for seed in SEEDS:
        for kind in KINDS:
            run = followed(kind, seed)
            curves.setdefault(kind, thinned(run))
            runs[kind].append((jump(run), fired(run)))
            print(kind, seed, *runs[kind][-1], flush=True)
    write({**table(runs), "environment": environment(), "curves": curves})


def write(results: dict[str, Any]) -> None:
    """As JSON, a list of numbers on each line."""
    text = json.dumps(results, indent=1)
    RESULTS.write_text(re.sub(r"\[[^\[\]{}]*\]", lambda m: " ".join(m[0].split()), text) + "\n")


if __name__ == "__main__":
    main()
