"""Which gradient transformation makes the updates, and how the next one takes over."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fgo_jax.controller.select import select
from fgo_jax.controller.trial import keeps_scale
from fgo_jax.linalg.trees import log_norm_ratio, real32, sum_squares, times, wide, widened
from fgo_jax.phases.phase import Phase
from fgo_jax.precondition.kronecker.transform import scale_by_kronecker_fisher

LARGEST = 40.0  # log of a graft; times a direction that passes the guard, it fits in float32


@dataclasses.dataclass(frozen=True)
class Plan:
    """The distinct transforms, and where in the phases one hands over to another."""

    transforms: tuple[optax.GradientTransformationExtraArgs, ...]
    transform_of: tuple[int, ...]  # phase -> transform
    fills: tuple[int, ...]  # transforms that fill during some hand-over
    needs_fill: np.ndarray  # [from phase, to phase] -> bool

    @classmethod
    def of(cls, phases: Sequence[Phase]) -> Plan:
        """The plan of some phases, with a transform for those that keep their predecessor's."""
        chosen: list[optax.GradientTransformation] = []
        for phase in phases:
            if phase.transform is not None:
                chosen.append(phase.transform)
            else:
                chosen.append(chosen[-1] if chosen else scale_by_kronecker_fisher())
        transforms = tuple(dict.fromkeys(chosen))
        transform_of = tuple(transforms.index(transform) for transform in chosen)

        needs_fill = np.zeros((len(phases), len(phases)), np.bool_)
        for old, driving in enumerate(transform_of):
            for new, coming in enumerate(transform_of):
                needs_fill[old, new] = old < new and driving != coming
        fills = {transform_of[new] for new in np.flatnonzero(needs_fill.any(axis=0))}
        with_extras = tuple(map(optax.with_extra_args_support, transforms))
        return cls(with_extras, transform_of, tuple(sorted(fills)), needs_fill)

    @functools.cached_property
    def kept(self) -> frozenset[int]:
        """Transforms whose graft stays after they take over.

        A learning rate has the unit of the first phase's transform. Another transform fits it
        without a graft only if the updates of neither shrink with the gradients.
        """
        keeps = [keeps_scale(transform) for transform in self.transforms]
        first = self.transform_of[0]
        return frozenset(i for i in self.fills if i != first and not (keeps[first] and keeps[i]))

    def transform_at(self, phase: jax.Array) -> jax.Array:
        """[], int32: the index of a phase's transform."""
        return select(phase, self.transform_of)

    def must_fill(self, driver: jax.Array, phase: jax.Array) -> jax.Array:
        """[], bool: whether a phase's transform fills while the driver's makes the updates."""
        if not self.fills:
            return jnp.zeros([], jnp.bool_)
        return select(phase, [select(driver, column) for column in self.needs_fill.T])

    def cast(self, driver: jax.Array, phase: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The driving transform and the one that fills, by index; -1 for none."""
        filling = self.must_fill(driver, phase)
        return self.transform_at(driver), jnp.where(filling, self.transform_at(phase), -1)

    def rows(self, grads: Any, states: tuple[Any, ...], driver: jax.Array) -> Any:
        """The gradients in the driving transform's metric; raw where it has none."""
        metrics = [getattr(transform, "metric", None) for transform in self.transforms]
        if not any(metrics):
            return grads

        def branch(index: int, metric: Any):
            if metric is not None:
                return lambda grads, states: metric(grads, states[index])
            return lambda grads, states: jax.tree.map(real32, grads)

        branches = [branch(*pair) for pair in enumerate(metrics)]
        return jax.lax.switch(self.transform_at(driver), branches, grads, states)

    def direction(
        self,
        grads: Any,
        params: Any,
        states: tuple[Any, ...],
        grafts: Any,
        *,
        driving: jax.Array,
        coming: jax.Array,
        graft_weight: jax.Array,
        fill_share: jax.Array,
        clip_norm: Any,
        extras: dict[str, Any],
    ) -> tuple[Any, tuple[Any, ...], Any]:
        """The driving transform's direction, all transforms' states and the grafts.

        Each transform has a conditional of its own with two branches, one of which returns its
        operands. XLA then copies nothing. In one switch over all transforms, every branch
        would return the states that the others change, and XLA would copy all of them at
        every step, most of them twice.

        Args:
          driving: [], int32; the transform whose direction it is, or -1 for zeros.
          coming: [], int32; the transform that fills, or -1.
          grafts: for each transform that fills, by `fills`; see `graft_init`.
          graft_weight: [], float32; 1 when a transform takes over, fading to 0.
          fill_share: [], float32; weight of this step in the hand-over's mean graft.
          clip_norm: global norm, or None.
          extras: extra arguments for the transforms.
        """

        def advance(index: int, grads: Any, params: Any, state: Any) -> tuple[Any, Any]:
            if clip_norm is not None:
                # Inside the branch, where it fuses with what reads the gradients.
                grads = _clipped(grads, clip_norm)
            direction, new = self.transforms[index].update(grads, state, params, **extras)
            # A branch's output must have the type of every other branch's.
            direction = optax.tree.cast_like(direction, widened(grads, params))
            return direction, optax.tree.cast_like(new, state)

        def drive(index: int):
            def branch(grads, params, state, before, grafts, weight):
                del before
                direction, state = advance(index, grads, params, state)
                if index in self.fills:
                    if index in self.kept:
                        weight = jnp.ones([], jnp.float32)
                    direction = _grafted(direction, grafts, weight)
                return direction, state

            return branch

        def stand_by(grads, params, state, before, grafts, weight):
            del grafts, weight
            if before is None:
                before = optax.tree.zeros_like(widened(grads, params))
            return before, state

        def fill(index: int):
            def branch(grads, params, state, direction, grafts, share):
                other, state = advance(index, grads, params, state)
                return state, _measured(grafts, direction, other, share)

            return branch

        def leave(grads, params, state, direction, grafts, share):
            del grads, params, direction, share
            return state, grafts

        new = list(states)
        direction = None
        for index in range(len(self.transforms)):
            graft = grafts[self.fills.index(index)] if index in self.fills else ()
            direction, new[index] = jax.lax.cond(
                driving == index, drive(index), stand_by,
                grads, params, new[index], direction, graft, graft_weight,
            )  # fmt: skip
        measured = []
        for index, graft in zip(self.fills, grafts, strict=True):
            new[index], graft = jax.lax.cond(
                coming == index, fill(index), leave,
                grads, params, new[index], direction, graft, fill_share,
            )  # fmt: skip
            measured.append(graft)
        return direction, tuple(new), tuple(measured)


def graft_init(params: Any) -> jax.Array:
    """[leaves + 1]: log of the wanted norm of an update over its own norm.

    One for each tensor, then one for the whole tree; NaN until measured.
    """
    return jnp.full(len(jax.tree.leaves(params)) + 1, jnp.nan, jnp.float32)


def _clipped(grads: Any, norm: Any) -> Any:
    """Gradients of at most this global norm, in float32: half precision cannot hold the squares."""
    length = jnp.sqrt(sum_squares(grads))

    def shortened(g: jax.Array) -> jax.Array:
        return jnp.where(length < norm, g, (wide(g) / length * norm).astype(g.dtype))

    return jax.tree.map(shortened, grads)


def _measured(grafts: jax.Array, wanted: Any, given: Any, share: jax.Array) -> jax.Array:
    """The grafts with a share of this step's ratios.

    A tensor of norm zero at this step, such as an idle expert's, keeps its graft. The first ratio
    of a tensor has weight 1.
    """
    squares = jnp.asarray(
        [[sum_squares(x) for x in jax.tree.leaves(tree)] for tree in (wanted, given)], jnp.float32
    )
    squares = jnp.concatenate([squares, jnp.sum(squares, axis=1, keepdims=True)], axis=1)
    ratio, known = log_norm_ratio(*squares)
    old = jnp.where(share < 1, grafts, jnp.nan)  # of an earlier hand-over
    return jnp.where(known, jnp.where(jnp.isnan(old), ratio, old + share * (ratio - old)), old)


def _grafted(direction: Any, grafts: jax.Array, weight: jax.Array) -> Any:
    """The direction scaled by the grafts, tensor by tensor.

    A tensor of norm zero throughout the hand-over, such as a dead layer's, takes the ratio of the
    tree, so that its update fits the others if it revives. Without a hand-over a transform keeps
    its own size.
    """
    grafts = jnp.nan_to_num(jnp.where(jnp.isnan(grafts), grafts[-1], grafts))
    scales = jnp.exp(jnp.minimum(weight * grafts, LARGEST))
    leaves, treedef = jax.tree.flatten(direction)
    return treedef.unflatten([times(x, scales[i]) for i, x in enumerate(leaves)])
