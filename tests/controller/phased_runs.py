"""Optimizers of phases whose every number is traced, and their runs over a stream.

One program serves all numbers that an example draws: a compiled one for each structure.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fgo_jax as fgo
from tests.streams import STEPS

t = fgo.triggers
SHAPES = {"matrix": (3, 2), "vector": (3,), "scalar": ()}
SIZE = 10
ADAM, TRACE, RMS = optax.scale_by_adam(), optax.trace(0.9), optax.scale_by_rms()


@dataclasses.dataclass(frozen=True)
class Structure:
    """How an optimizer is built from an example's numbers, and what its phases end by."""

    build: Callable[[dict[str, Any]], Any]
    # For each phase: (its conditions' verdicts, numbers) -> the trigger's verdict.
    verdicts: tuple[Callable[[dict[str, Any], dict[str, Any]], int], ...]
    minima: Callable[[dict[str, Any]], tuple[int, ...]]
    shares: tuple[float, ...] = ()  # deadlines, of total_steps
    transform_of: tuple[int, ...] = (0, 0, 0)
    cuts: tuple[bool, ...] = (False, False, False)
    dtype: Any = jnp.float32


def protocol(n, **options):
    return fgo.target_acquisition(
        n["rate"], n["warmup"], weight_decay=n["decay"], clip_norm=n["clip"],
        average_weights=n["window"], slow_share=n["share"], handover_steps=n["handover"],
        probe=fgo.probes.gradient_stream(pairs=4, width=8, every=2), **options,
    )  # fmt: skip


def one_transform(n, transform=ADAM):
    soon = {"acquisition": t.below("agreement", 0.75), "reask": t.below("agreement", 0.9)}
    return protocol(n, transform=transform, triggers=soon)


def horizon(n):
    own = {"acquisition": ADAM, "reask": TRACE, "execution": RMS}
    later = {"reask": t.after(n["after"]) & t.if_given(t.decreasing("loss"), "loss", -1)}
    return protocol(
        n, transform=own, triggers=later, total_steps=n["total"], decay=fgo.decays.cosine()
    )


def four_phases(n):
    def law(step):
        return n["rate"] / (1.0 + 0.1 * step)

    phases = [
        fgo.acquisition(law, n["warmup"], transform=ADAM, weight_decay=n["decay"]),
        fgo.reask(law, n["cut"], transform=TRACE, slow_share=n["share"]),
        fgo.Phase("polish", lambda progress: n["rate"] * (1.0 - n["cut"]), RMS),
        fgo.execution(law, n["cut"], decay=fgo.decays.one_minus_sqrt(floor=0.1), transform=ADAM),
    ]
    ends = [
        t.after(n["after"]) | t.plateau("loss", patience=3),
        ~t.above("validation", 0.5, patience=1),
        t.after(n["after"]),
        t.plateau("validation", patience=2),
    ]
    return fgo.phased(
        phases, ends, handover_steps=n["handover"], min_steps=n["minima"],
        total_steps=n["total"], deadlines=(0.3, 0.4, 0.8), average_weights=n["window"],
    )  # fmt: skip


def execution_alone(n):
    phase = fgo.execution(
        n["rate"], n["cut"], decay=fgo.decays.linear(n["total"]), transform=optax.identity()
    )
    return fgo.phased([phase], [t.plateau("validation", patience=2)], handover_steps=n["handover"])


def warmup_then_handover(n):
    return n["warmup"], n["handover"], 0


def alone(name):
    return lambda c, n: c[name]


SOON = (alone("agreement_below"), alone("agreement_below"), alone("validation_plateau"))
STRUCTURES = {
    "one transform": Structure(one_transform, SOON, warmup_then_handover),
    "own transforms and a horizon": Structure(
        horizon,
        (
            lambda c, n: min(
                c["intrinsic_dimension_stopped_falling"],
                c["agreement_below"],
                c["not_loss_increasing"],
            ),
            lambda c, n: min(c["after"], c["loss_decreasing"]),
            alone("validation_plateau"),
        ),
        warmup_then_handover,
        shares=(0.35, 0.7),
        transform_of=(1, 0, 2),
    ),
    "four phases": Structure(
        four_phases,
        (
            lambda c, n: max(c["after"], c["loss_plateau"]),
            alone("not_validation_above"),
            alone("after"),
            alone("validation_plateau"),
        ),
        lambda n: n["minima"],
        shares=(0.3, 0.4, 0.8),
        transform_of=(0, 1, 2, 0),
        cuts=(False, True, True, True),
    ),
    "execution alone": Structure(
        execution_alone,
        (alone("validation_plateau"),),
        lambda n: (0,),
        transform_of=(0,),
        cuts=(True,),
    ),
    "bfloat16": Structure(one_transform, SOON, warmup_then_handover, dtype=jnp.bfloat16),
    "natural gradient": Structure(
        functools.partial(one_transform, transform=None), SOON, warmup_then_handover
    ),
}


def as_tree(flat, dtype):
    parts = jnp.split(flat, np.cumsum([int(np.prod(s)) for s in SHAPES.values()])[:-1])
    named = zip(SHAPES.items(), parts, strict=True)
    return {name: part.reshape(shape).astype(dtype) for (name, shape), part in named}


def flat(tree):
    """The numbers of a tree in a vector of each dtype: an operation on it is one for all leaves."""
    leaves = jax.tree.leaves(tree)
    kinds = dict.fromkeys(x.dtype for x in leaves)
    return [jnp.concatenate([x.ravel() for x in leaves if x.dtype == kind]) for kind in kinds]


def unlike(new, old):
    """[], int32: how many numbers of two trees differ."""
    pairs = zip(flat(new), flat(old), strict=True)
    return sum(jnp.sum((a != b) & ~((a != a) & (b != b))) for a, b in pairs)


def infinite(tree):
    """[], int32: how many numbers of a tree are not finite."""
    floats = [x for x in flat(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return sum((jnp.sum(~jnp.isfinite(x)) for x in floats), jnp.int32(0))


def decisions(row):
    """What of a step's record says which phase comes when, and the rate."""
    fields = ("phase", "phase_step", "driver", "handover_left", "started", "causes")
    return [getattr(row["clock"], field) for field in fields], row["told"]["learning_rate"]


def at(inputs, number):
    """What the program reads at that step."""
    return jax.tree.map(lambda x: x[number], inputs)


@functools.cache
def program(name):
    """(start, walk, step, read) of a structure, compiled; all are given its numbers first.

    A run is its carry and the record of all its steps, which a walk fills in. The record is in few
    arrays, because each of a dozen small ones would take as long as the rest of the step.
    """
    structure = STRUCTURES[name]

    def start(n, inputs):
        params = as_tree(jnp.ones(SIZE), structure.dtype)
        carry = params, structure.build(n).init(params)
        row = jax.eval_shape(lambda: flat(one(n, carry, at(inputs, 0))[1]))
        return carry, [jnp.zeros((STEPS, *x.shape), x.dtype) for x in row]

    @jax.jit  # so that it is traced once for all
    def one(n, carry, now):
        params, state = carry
        forced = [
            functools.partial(fgo.force_phase, phase=i) for i in range(len(structure.verdicts))
        ]
        state = jax.lax.switch(now["act"] + 2, [fgo.restart, lambda s: s, *forced], state)
        updates, new = structure.build(n).update(
            as_tree(now["grads"], structure.dtype),
            state,
            params,
            value=now["value"],
            validation_value=now["validation"],
        )
        # A graft is NaN until there is one.
        grafts = jax.tree.map(lambda g: jnp.where(jnp.isnan(g), 0.0, g), new.grafts)
        means = (new.transforms, new.slow, new.energy_fall, new.average, grafts)
        record = {
            "clock": new.clock,
            "skipped": new.skipped_steps,
            "told": fgo.telemetry(new),
            "errors": {key: pair[1] for key, pair in new.signals.items()},
            "changed": unlike(new._replace(skipped_steps=state.skipped_steps), state),
            "moved": unlike(updates, jax.tree.map(jnp.zeros_like, updates)),
            "infinite": infinite((updates, means)),
        }
        return (optax.apply_updates(params, updates), new), record

    def walk(n, run, inputs, first, last):
        """The steps from `first` to `last` alone, so that a part of a run is the same program."""

        def step(number, run):
            carry, record = run
            carry, row = one(n, carry, at(inputs, number))
            pairs = zip(record, flat(row), strict=True)
            return carry, [rows.at[number].set(x) for rows, x in pairs]

        return jax.lax.fori_loop(first, last, step, run)

    def step(n, carry, now):
        """What decides in one step, and the rate."""
        carry, row = one(n, carry, now)
        return carry, flat(decisions(row))

    rows = []  # the shapes of a step's record, which are the same in all runs

    def read(n, run, inputs):
        """The record of a run as a tree, [STEPS, ...] each."""
        if not rows:
            rows.append(jax.eval_shape(one, n, run[0], at(inputs, 0))[1])
        leaves, structure = jax.tree.flatten(rows[0])
        blocks = {block.dtype: np.asarray(block) for block in run[1]}
        parts = {
            kind: iter(np.split(block, np.cumsum([x.size for x in leaves if x.dtype == kind]), 1))
            for kind, block in blocks.items()
        }
        return structure.unflatten(next(parts[x.dtype]).reshape(STEPS, *x.shape) for x in leaves)

    return jax.jit(start), jax.jit(walk), jax.jit(step), read
