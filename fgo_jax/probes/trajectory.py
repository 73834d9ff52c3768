"""How many dimensions the path of the parameters has, beside those of a random walk."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax.linalg.counters import later
from fgo_jax.probes import path
from fgo_jax.probes.groups import Groups, check_groups
from fgo_jax.probes.probe import Estimate, Probe, ProbeInputs


class TrajectoryState(NamedTuple):
    """The ring of snapshots and what it said last."""

    evaluations: jax.Array  # [], int32; snapshots read, the ring being full
    next_snapshot: jax.Array  # [], int32; step
    path: path.Path
    readings: jax.Array  # [signals], float32; NaN before the ring is full


def trajectory(
    *,
    snapshots: int = 32,
    width: int = 1024,
    every: int | None = None,
    growth: float = 0.03,
    energy: float = 0.9,
    groups: Groups | None = None,
) -> Probe:
    r"""Measures the dimension of the path of the parameters, and what a random walk's would be.

    A ring keeps sketches of the last n parameters. With their centred Gram matrix K, whose
    eigenvalues are the variances along the path's principal components:

    - ``path_dimension``: :math:`(\mathrm{tr} K)^2 / \mathrm{tr} K^2`, the participation ratio,
      from two independent sketches.
    - ``path_rank``: fewest components that hold ``energy`` of the variance; r90 by default.
    - ``path_top_share``: share of the variance in the first component.
    - ``walk_dimension``, ``walk_rank`` and ``walk_top_share``: the same of a random walk in
      many dimensions that is seen at the same steps. For many evenly spaced snapshots they
      are 5/2, 6 and :math:`6/\pi^2 = 0.61`, in any number of parameters.

    So "the path has three or four dimensions" says nothing by itself. A straight path has one,
    a circle two, and noise alone 2.5, or six by its rank. Compare with the
    walk's. The walk has one rate of diffusion: where the learning rate falls over the window,
    late snapshots lie closer together than the walk's. No error is known, because all
    snapshots belong to one path.

    Args:
      snapshots: n, at least 4. The numbers are known once the ring is full.
      width: entries of each of the two sketches. Memory is ``8 * width * snapshots`` bytes for
        any number of parameters, and as much again for each group.
      every: steps from one snapshot to the next. None takes ``max(1, growth * step)``: 32
        snapshots at 3 % then cover the last three fifths of the run.
      growth: see ``every``.
      energy: share of the variance that the rank holds, in (0, 1].
      groups: parts of the tree to measure separately, from
        :func:`fgo_jax.probes.layer_groups`; the three signals as ``path_rank/NAME`` and so on.

    Returns:
      A :class:`fgo_jax.probes.Probe` that requires the parameters of the update.

    Raises:
      ValueError: for numbers out of range; when traced, for groups of parameters that do not
        exist.

    Example:
      >>> import optax
      >>> import fgo_jax as fgo
      >>> adam = optax.scale_by_adam()
      >>> tx = fgo.phased(
      ...     [fgo.acquisition(1e-3, transform=adam), fgo.execution(1e-3, transform=adam)],
      ...     [fgo.triggers.below("path_dimension", 1.5)],
      ...     fgo.probes.trajectory(every=50),
      ... )

    Source: arXiv 2602.10496, on principal components of parameters along a run. The random
    walk beside it is this library's; Antognini and Sohl-Dickstein (2018), "PCA of
    high-dimensional random walks with comparison to neural network training".
    """
    _checks.positive_int("snapshots", snapshots, 4)
    _checks.positive_int("width", width)
    if every is not None:
        _checks.integer("every", every)
    _checks.positive("growth", growth)
    _checks.share("energy", energy)
    names = check_groups(groups)
    signals = path.signal_names(names)

    def init(params: Any) -> TrajectoryState:
        del params  # the sketch's size does not depend on the model's
        return TrajectoryState(
            evaluations=jnp.zeros([], jnp.int32),
            next_snapshot=jnp.zeros([], jnp.int32),
            path=path.empty(snapshots, len(names), width),
            readings=jnp.full([len(signals)], jnp.nan, jnp.float32),
        )

    def measure(inputs: ProbeInputs, state: TrajectoryState) -> TrajectoryState:
        gap = jnp.maximum(1, (growth * inputs.step.astype(jnp.float32)).astype(jnp.int32))
        gap = gap if every is None else jnp.asarray(every, jnp.int32)
        ring = path.add(state.path, inputs.params, inputs.step, inputs.key, groups)
        evaluations, readings = jax.lax.cond(
            path.is_full(ring),
            functools.partial(_read, energy=energy, names=names),
            lambda ring, old: (old.evaluations, old.readings),
            ring,
            state._replace(path=()),
        )
        return TrajectoryState(evaluations, later(inputs.step, gap), ring, readings)

    def read(state: TrajectoryState) -> dict[str, Estimate]:
        unknown = jnp.full([], jnp.nan, jnp.float32)
        return {
            name: Estimate(value, unknown)
            for name, value in zip(signals, state.readings, strict=True)
        }

    return Probe(
        signals=signals,
        init=init,
        due=lambda state, step: (step >= state.next_snapshot) | (step == 0),
        measure=measure,
        read=read,
        requires=("params",),
    )


def _read(
    ring: path.Path, old: TrajectoryState, *, energy: Any, names: tuple[str, ...]
) -> tuple[jax.Array, jax.Array]:
    found = path.estimates(path.read(ring, energy), names)
    evaluations = jnp.asarray(optax.safe_increment(old.evaluations))
    return evaluations, jnp.stack(list(found.values()))
