"""Which gradient transformation makes the updates, and how the next one takes over."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fgo_jax._norms import log_norm_ratio
from fgo_jax.phases import Phase


@dataclasses.dataclass(frozen=True)
class Plan:
    """The branches of the one `lax.switch`.

    Branch 0 skips the step. Then one branch for each distinct transform, and one for each
    pair of transforms of which, somewhere forward in the phases, one hands over to the other.
    """

    transforms: tuple[optax.GradientTransformationExtraArgs, ...]
    transform_of: tuple[int, ...]  # phase -> transform
    fills: tuple[tuple[int, int], ...]  # (driving transform, transform to fill)
    needs_fill: np.ndarray  # [from phase, to phase] -> bool
    branch_of: np.ndarray  # [driver phase, running phase] -> branch

    @classmethod
    def of(cls, phases: Sequence[Phase]) -> Plan:
        chosen: list[Any] = []
        for phase in phases:
            chosen.append(chosen[-1] if chosen and phase.inherits else phase.transform)
        transforms = tuple(dict.fromkeys(chosen))
        transform_of = tuple(transforms.index(transform) for transform in chosen)

        needs_fill = np.zeros((len(phases), len(phases)), np.bool_)
        branch_of = np.zeros((len(phases), len(phases)), np.int32)
        fills: list[tuple[int, int]] = []
        for old, driving in enumerate(transform_of):
            for new, coming in enumerate(transform_of):
                branch_of[old, new] = 1 + driving
                if old < new and driving != coming:
                    if (driving, coming) not in fills:
                        fills.append((driving, coming))
                    needs_fill[old, new] = True
                    branch_of[old, new] = 1 + len(transforms) + fills.index((driving, coming))
        with_extras = tuple(map(optax.with_extra_args_support, transforms))
        return cls(with_extras, transform_of, tuple(fills), needs_fill, branch_of)

    def rows(self, grads: Any, states: tuple[Any, ...], driver: jax.Array) -> Any:
        """The gradients in the metric of the driving transform; raw where it has none."""
        metrics = [getattr(transform, "metric", None) for transform in self.transforms]
        if not any(metrics):
            return grads

        def branch(index: int, metric: Any):
            if metric is not None:
                return lambda grads, states: metric(grads, states[index])
            return lambda grads, states: jax.tree.map(lambda g: g.astype(jnp.float32), grads)

        branches = [branch(*pair) for pair in enumerate(metrics)]
        return jax.lax.switch(jnp.asarray(self.transform_of)[driver], branches, grads, states)

    def direction(
        self,
        grads: Any,
        params: Any,
        states: tuple[Any, ...],
        grafts: Any,
        *,
        branch: jax.Array,
        graft_weight: jax.Array,
        fill_share: jax.Array,
        clip_norm: Any,
        extras: dict[str, Any],
    ) -> tuple[Any, tuple[Any, ...], Any]:
        """The driving transform's direction, all transforms' states and the grafts.

        Args:
          branch: [], int32; an entry of `branch_of`, or 0.
          graft_weight: [], float32; 1 when a transform takes over, fading to 0.
          fill_share: [], float32; weight of this step in the hand-over's mean graft.
          clip_norm: global norm, or None.
          extras: extra arguments for the transforms.
        """

        def advance(index: int, grads: Any, params: Any, states: tuple[Any, ...]):
            direction, state = self.transforms[index].update(grads, states[index], params, **extras)
            # A branch's output must have the type of every other branch's.
            direction = optax.tree.cast_like(direction, grads)
            state = optax.tree.cast_like(state, states[index])
            return direction, (*states[:index], state, *states[index + 1 :])

        def clip(grads: Any) -> Any:
            if clip_norm is None:
                return grads
            # Inside the branch, where it fuses with what reads the gradients.
            clipping = optax.clip_by_global_norm(clip_norm)
            return clipping.update(grads, optax.EmptyState())[0]

        def skip(grads, params, states, grafts, graft_weight, fill_share):
            del params, graft_weight, fill_share
            return optax.tree.zeros_like(grads), states, grafts

        def drive(index: int):
            def branch(grads, params, states, grafts, graft_weight, fill_share):
                del fill_share
                direction, states = advance(index, clip(grads), params, states)
                if any(coming == index for _, coming in self.fills):
                    stays = not getattr(self.transforms[index], "keeps_scale", True)
                    weight = jnp.ones([], jnp.float32) if stays else graft_weight
                    direction = jax.tree.map(
                        lambda d, g: d * jnp.exp(weight * g).astype(d.dtype),
                        direction,
                        grafts,
                    )
                return direction, states, grafts

            return branch

        def fill(driving: int, coming: int):
            def branch(grads, params, states, grafts, graft_weight, fill_share):
                del graft_weight
                grads = clip(grads)
                direction, states = advance(driving, grads, params, states)
                other, states = advance(coming, grads, params, states)
                grafts = jax.tree.map(
                    lambda old, a, b: old + fill_share * (log_norm_ratio(a, b) - old),
                    grafts,
                    direction,
                    other,
                )
                return direction, states, grafts

            return branch

        drives = map(drive, range(len(self.transforms)))
        branches = [skip, *drives, *(fill(*pair) for pair in self.fills)]
        return jax.lax.switch(
            branch, branches, grads, params, states, grafts, graft_weight, fill_share
        )


def graft_init(params: Any) -> Any:
    """Log of the norm that each tensor's update should have, relative to its own."""
    return jax.tree.map(lambda p: jnp.zeros([], jnp.float32), params)
