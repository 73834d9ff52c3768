"""How much the order of two batches matters, and whether the difference lies along the path."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax.linalg import half, mesh
from fgo_jax.linalg.devices import AxisName, mean_over, on_each_device
from fgo_jax.linalg.operator import check_examples, example_count, is_due
from fgo_jax.linalg.sketch import sketch_tree
from fgo_jax.linalg.trees import real32, sum_squares, wide
from fgo_jax.probes import path
from fgo_jax.probes.probe import Estimate, Probe, ProbeInputs

_OWN = ("commutator_defect", "commutator_share", "random_share")


class CommutatorState(NamedTuple):
    """The ring of snapshots and the last estimates."""

    evaluations: jax.Array  # [], int32
    path: path.Path
    estimates: jax.Array  # [signals, 2], float32; value and standard error


def commutator(
    loss_fn: Callable[[Any, Any], Any],
    every: int = 200,
    *,
    pairs: int = 4,
    examples: int | None = None,
    rate: float | None = None,
    snapshots: int = 16,
    width: int = 1024,
    energy: float = 0.9,
) -> Probe:
    r"""Measures how far two steps of SGD end apart when their batches change places.

    With the gradients :math:`g_A, g_B` and Hessians :math:`H_A, H_B` of two batches, and one
    step of SGD at the rate :math:`\eta` on each,

    .. math:: \delta = \theta_{AB} - \theta_{BA} \approx \eta^2 (H_B g_A - H_A g_B),
              \qquad D = \frac{\|\delta\|}{\|\eta g_A\| \|\eta g_B\|}.

    On quadratics this is exact and D does not depend on the rate. The signals are:

    - ``commutator_defect``: D, the median over the pairs, in the unit of a curvature over a
      gradient. Its error is that of a median of normal numbers, unknown for one pair.
    - ``commutator_share``: the share of :math:`\|\delta\|^2` within the first three principal
      components of the path of the parameters, the mean over the pairs. The sketch adds an
      error of about ``2 / width`` for each pair, so it is near zero, of either sign, for a
      commutator that is orthogonal to the path.
    - ``random_share``: the same for three random directions, 3/P for P parameters.
    - those of :func:`fgo_jax.probes.trajectory` for the whole tree, from a snapshot at each
      measurement. They and the share are NaN until the ring is full.

    Shares are of energies. The published "more than 92 % orthogonal" is one minus a ratio of
    norms, whose square is below 0.0064: compare it with ``random_share``.

    A measurement reads ``2 * pairs`` disjoint parts of the batch. It costs two gradients and
    two products with a Hessian for each pair: about three gradients of all examples read.

    Args:
      loss_fn: ``(params, batch) -> loss``, a scalar or one number for each example.
      every: steps between measurements, which are at ``every, 2 * every, ...``.
      pairs: of parts of the batch.
      examples: how many leading examples of ``batch`` to read, a multiple of ``2 * pairs``;
        None for an eighth. Under the ``axis_name`` of :func:`fgo_jax.phased`, of each device's
        part.
      rate: :math:`\eta` of the steps. None takes the limit of a small rate by forward
        differentiation. A small rate in float32 moves some parameters by less than their
        rounding, and D is then noise.
      snapshots: of the path, at least 4. Memory is ``8 * width * snapshots`` bytes.
      width: entries of each of the two sketches.
      energy: share of the variance that ``path_rank`` holds, in (0, 1].

    Returns:
      A :class:`fgo_jax.probes.Probe` that requires ``params`` and ``batch=`` of the update.

    Raises:
      ValueError: for numbers out of range; when traced, for a ``batch`` that does not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import fgo_jax as fgo
      >>> probe = fgo.probes.commutator(lambda p, x: jnp.mean((x @ p) ** 2), every=100)
      >>> onset = fgo.triggers.above("commutator_defect", 20.0)
      >>> probe.signals[:3]
      ('commutator_defect', 'commutator_share', 'random_share')

    Source: arXiv 2602.10496, with nine pairs of whole batches, a rate of 1e-3 and components
    of each block; arXiv 2602.16746, where D above 20 and above ten times the median of its
    first three values came 600 to 1600 steps before grokking in twelve of twelve runs. It rose
    without grokking too: necessary, not sufficient. None of that has been repeated here. The
    limit of a small rate and the unbiased share are this library's.
    """
    _checks.function("loss_fn", loss_fn, "(params, batch) -> loss")
    _checks.integer("every", every)
    _checks.positive_int("pairs", pairs)
    check_examples(examples, None, 2 * pairs, 2 * pairs)
    if rate is not None:
        _checks.positive("rate", rate)
    _checks.positive_int("snapshots", snapshots, 4)
    _checks.positive_int("width", width)
    _checks.share("energy", energy)
    signals = (*_OWN, *path.signal_names(()))
    count = functools.partial(
        example_count, examples=examples, batch_size=None, minimum=2 * pairs, multiple=2 * pairs
    )

    def init(params: Any) -> CommutatorState:
        del params
        return CommutatorState(
            evaluations=jnp.zeros([], jnp.int32),
            path=path.empty(snapshots, 0, width),
            estimates=jnp.full([len(signals), 2], jnp.nan, jnp.float32),
        )

    def measure(inputs: ProbeInputs, state: CommutatorState) -> CommutatorState:
        ring = path.add(state.path, inputs.params, inputs.step, inputs.key, None)
        nothing = jnp.full([len(signals) - 3], jnp.nan, jnp.float32)
        shape = [path.COMPONENTS, 2, width]

        def known(ring: path.Path) -> tuple[jax.Array, jax.Array]:
            reading = path.read(ring, energy)
            return jnp.stack(list(path.estimates(reading, ()).values())), reading.components

        def unknown(ring: path.Path) -> tuple[jax.Array, jax.Array]:
            del ring
            return nothing, jnp.full(shape, jnp.nan, jnp.float32)

        of_path, components = jax.lax.cond(path.is_full(ring), known, unknown, ring)
        size = count(inputs.batch) // (2 * pairs)

        def one(number: jax.Array) -> tuple[jax.Array, jax.Array]:
            halves = [mesh.examples(inputs.batch, (2 * number + i) * size, size) for i in (0, 1)]
            delta, lengths = difference(loss_fn, inputs.params, halves, rate, inputs.axis_name)
            length = sum_squares(delta)
            inside = path.share(components, sketch_tree(delta, ring.path_seed, width), length)
            return jnp.sqrt(length) / (lengths[0] * lengths[1]), inside

        defects, shares = jax.lax.map(one, jnp.arange(pairs))
        # As an int it would be beyond int32 for large models.
        total = float(optax.tree.size(jax.tree.map(real32, inputs.params)))
        random = jnp.float32(min(path.COMPONENTS, total) / max(total, 1.0))
        values = jnp.stack([jnp.median(defects), jnp.mean(shares), random])
        errors = jnp.full([len(signals)], jnp.nan, jnp.float32)
        if pairs > 1:
            spread = jnp.stack([jnp.std(x, ddof=1) for x in (defects, shares)]) / pairs**0.5
            # The median of normal numbers has pi/2 times the variance of their mean.
            errors = errors.at[:2].set(spread * jnp.array([(jnp.pi / 2) ** 0.5, 1.0]))
        return CommutatorState(
            evaluations=jnp.asarray(optax.safe_increment(state.evaluations)),
            path=ring,
            estimates=jnp.stack([jnp.concatenate([values, of_path]), errors], 1),
        )

    def check(inputs: ProbeInputs) -> None:
        count(inputs.batch)

    return Probe(
        signals=signals,
        init=init,
        due=lambda state, step: is_due(step, every),
        measure=measure,
        read=lambda state: {
            name: Estimate(*pair) for name, pair in zip(signals, state.estimates, strict=True)
        },
        requires=("params", "batch"),
        check=check,
    )


def difference(
    loss_fn: Any, params: Any, halves: list[Any], rate: float | None, axis_name: AxisName
) -> tuple[Any, list[jax.Array]]:
    """(theta_AB - theta_BA) / rate^2, shaped like the parameters; norms of the two gradients.

    The two parts of a complex parameter are two parameters, on one more axis.
    """
    loss_fn, params = _of_real(loss_fn, params)

    def gradient(part: Any, scale: float) -> Callable[[Any], Any]:
        def at(point: Any) -> Any:
            own = on_each_device(point, part, axis_name)
            grads = jax.grad(lambda p: scale * jnp.mean(loss_fn(p, part)))(own)
            return jax.tree.map(lambda g: wide(g) / scale, grads)

        return at

    def field(part: Any, point: Any) -> Any:
        found = half.scaled_up(params, lambda scale: gradient(part, scale)(point))
        return mean_over(axis_name, found)

    grads = [field(part, params) for part in halves]

    def drift(part: Any, here: Any, along: Any) -> Any:
        """By how much a gradient falls over a step along another one, over the rate."""
        if rate is not None:
            moved = jax.tree.map(lambda p, g: p - (rate * g).astype(p.dtype), params, along)
            return jax.tree.map(lambda a, b: (a - b) / rate, here, field(part, moved))
        # A small gradient would be zero in float16.
        factor = half.vector_scale(along) if half.has_half(params) else 1.0
        like = jax.tree.map(lambda p, g: (factor * g).astype(p.dtype), params, along)

        def product(scale: float) -> Any:
            found = jax.jvp(gradient(part, scale), (params,), (like,))[1]
            return jax.tree.map(lambda g: g / factor, found)

        return mean_over(axis_name, half.scaled_up(params, product))

    delta = optax.tree.sub(
        drift(halves[1], grads[1], grads[0]), drift(halves[0], grads[0], grads[1])
    )
    return delta, [jnp.sqrt(sum_squares(g)) for g in grads]


def _of_real(loss_fn: Any, params: Any) -> tuple[Any, Any]:
    """The loss as a function of real parameters, and these."""

    def whole(leaf: Any, parts: Any) -> Any:
        return jax.lax.complex(*parts).astype(leaf.dtype) if jnp.iscomplexobj(leaf) else parts

    parts = jax.tree.map(lambda x: real32(x) if jnp.iscomplexobj(x) else x, params)
    return lambda p, batch: loss_fn(jax.tree.map(whole, params, p), batch), parts
