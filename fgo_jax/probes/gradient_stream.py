"""The default probe: sketches of the gradients that training computes anyway."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax.linalg.counters import later
from fgo_jax.linalg.sketch import sketch_parts
from fgo_jax.linalg.trees import real32
from fgo_jax.probes.gradient_window import signal_names, window_estimates
from fgo_jax.probes.groups import Groups, check_groups, counter, slots
from fgo_jax.probes.probe import Estimate, MicroGradients, Probe, ProbeInputs


class GradientStreamState(NamedTuple):
    """The pending gradient, the rows of the open window, and the last window's estimates."""

    evaluations: jax.Array  # [], int32; windows closed
    next_row: jax.Array  # [], int32; step at which the next gradient is read
    window_seed: jax.Array  # [], uint32; seed of the window's two sketches
    pending: jax.Array  # [2, 1 + groups, 2, width], float32; sketches of a pair's gradients
    half: jax.Array  # [], int32; 1 while a pair waits for its second gradient
    filled: jax.Array  # [], int32; pairs in the window
    differences: jax.Array  # [pairs, 1 + groups, 2, width], float32; (g' - g) / sqrt 2
    products: jax.Array  # [pairs], float32; <g, g'>
    norms: jax.Array  # [pairs], float32; (|g|^2 + |g'|^2) / 2
    held: jax.Array  # [], int32; windows whose denominator was not positive
    new_dimensions: jax.Array  # [1 + groups], int32; windows that gave a new dimension
    estimates: jax.Array  # [signals, 2], float32; value and standard error


_CHANGED_BY_CLOSING = ("evaluations", "filled", "held", "new_dimensions", "estimates")


def gradient_stream(
    *,
    pairs: int = 8,
    width: int = 1024,
    every: int | None = None,
    growth: float = 0.02,
    energy: float = 0.9,
    groups: Groups | None = None,
) -> Probe:
    r"""Measures the noise of the training gradients from pairs of successive ones.

    It costs no extra pass: the two gradients :math:`g, g'` of successive steps are sketched.
    At equal parameters the row :math:`d = (g' - g)/\sqrt 2` has the covariance C of the
    gradient noise as its second moment, and :math:`\langle g, g' \rangle` is the squared norm
    of the mean gradient on average. After ``pairs`` rows the window closes, the signals
    change, and the next window starts with new random sketches:

    - ``intrinsic_dimension``: :math:`(\mathrm{tr}\,C)^2 / \mathrm{tr}\,C^2`, the ratio of two
      unbiased sums (:func:`fgo_jax.linalg.uncentred_sums`). Two independent sketches make
      products of two inner products unbiased too. A window whose sums are not positive
      keeps the last dimension and is counted in ``held``.
    - ``trace`` of C, unbiased, in the unit of the gradient squared.
    - ``top_eigenvalue`` of C, in the same unit. It is too large, as that of
      :func:`fgo_jax.probes.gram` is with n = ``pairs`` rows: white noise of 200 dimensions and
      variance 1 reads 34 from 8 pairs.
    - ``energy_rank``: how many eigenvalues of the rows' Gram matrix hold ``energy`` of its
      trace; ``energy_fraction`` divides it by ``pairs``. C has more eigenvalues than there
      are rows. A rank near what white noise would read says only that the rows are too few:
      its error is then infinite, so no trigger acts on it.
    - ``agreement``: :math:`\sum \langle g, g' \rangle / \sum \frac12(|g|^2 + |g'|^2)`. It is
      near 1 without noise, and near 0 where gradients are only noise.

    With ``groups``, ``trace/NAME`` and ``intrinsic_dimension/NAME`` are measured for each
    group. Each costs another sketch: memory, and little time.

    The rows are taken in the metric of the running phase (``rows`` of
    :class:`fgo_jax.probes.ProbeInputs`). The parameters move between the two gradients, so a
    row also holds :math:`H\,\Delta\theta / \sqrt 2`. At high learning rates the dimension is
    then too large early on: by 13 to 46 % at step 200 of a small vision transformer, and by less
    than two standard errors from step 1000 on (``benchmarks/results/stream.json``). Under
    :func:`fgo_jax.accumulate` the pair comes from the micro-batches of one step, at equal
    parameters.

    Args:
      pairs: rows of a window, at least 4.
      width: entries of each of the two sketches. Memory is ``8 * width * (pairs + 2)`` bytes
        for any number of parameters, and as much again for each group.
      every: steps from one pair to the next, at least 2. None takes
        ``max(2, growth * step)``: gaps grow with the step, so each doubling of the steps holds
        as many measurements, and the probe's share of the training time falls to zero.
      growth: see ``every``.
      energy: share of the trace that the energy rank holds, in (0, 1].
      groups: parts of the tree to measure separately, from
        :func:`fgo_jax.probes.layer_groups`.

    Returns:
      A :class:`fgo_jax.probes.Probe` that requires no argument of the update.

    Raises:
      ValueError: for numbers out of range; when traced, for groups of parameters that do
        not exist.

    Example:
      >>> import fgo_jax as fgo
      >>> probe = fgo.probes.gradient_stream(pairs=16)
      >>> tx = fgo.target_acquisition(3e-3, probe=probe)
      >>> probe.signals[0]
      'intrinsic_dimension'

    Source: Chun et al. (ICLR 2026), on the ratio's bias; Charikar et al. (2002), on the
    sketch.
    """
    _checks.positive_int("pairs", pairs, 4)
    _checks.positive_int("width", width)
    if every is not None:
        _checks.integer("every", every, 2)
    _checks.positive("growth", growth)
    _checks.share("energy", energy)
    names = check_groups(groups)
    signals = signal_names(names)
    return Probe(
        signals=signals,
        init=functools.partial(_init, pairs=pairs, width=width, names=names, signals=signals),
        due=lambda state, step: (step >= state.next_row) | (step == 0),
        measure=functools.partial(
            _measure, width=width, every=every, growth=growth, energy=energy, groups=groups
        ),
        read=lambda state: {
            name: Estimate(*pair) for name, pair in zip(signals, state.estimates, strict=True)
        },
        renew=lambda state: state._replace(
            half=jnp.zeros_like(state.half), filled=jnp.zeros_like(state.filled)
        ),
        counter=functools.partial(counter, names=names),
    )


def _init(
    params: Any, *, pairs: int, width: int, names: tuple[str, ...], signals: tuple[str, ...]
) -> GradientStreamState:
    del params  # the sketch's size does not depend on the model's
    sketch = [1 + len(names), 2, width]
    return GradientStreamState(
        evaluations=jnp.zeros([], jnp.int32),
        next_row=jnp.zeros([], jnp.int32),
        window_seed=jnp.zeros([], jnp.uint32),
        pending=jnp.zeros([2, *sketch], jnp.float32),
        half=jnp.zeros([], jnp.int32),
        filled=jnp.zeros([], jnp.int32),
        differences=jnp.zeros([pairs, *sketch], jnp.float32),
        products=jnp.zeros([pairs], jnp.float32),
        norms=jnp.zeros([pairs], jnp.float32),
        held=jnp.zeros([], jnp.int32),
        new_dimensions=jnp.zeros([1 + len(names)], jnp.int32),
        estimates=jnp.full([len(signals), 2], jnp.nan, jnp.float32),
    )


def _measure(
    inputs: ProbeInputs,
    state: GradientStreamState,
    *,
    width: int,
    every: int | None,
    growth: float,
    energy: float,
    groups: Groups | None,
) -> GradientStreamState:
    # A restarted training counts from 0 again: rows gathered before it are dropped.
    anew = inputs.step == 0
    half, slot = jnp.where(anew, 0, state.half), jnp.where(anew, 0, state.filled)
    # All rows of a window share their signs, since they meet in one Gram matrix. The next
    # window draws new ones, so the error of the sketch averages out over a run.
    seed = jax.lax.cond(
        (slot == 0) & (half == 0),
        lambda key, old: jax.random.bits(key, dtype=jnp.uint32),
        lambda key, old: old,
        inputs.key,
        state.window_seed,
    )
    sketch = functools.partial(_sketch, seed=seed, width=width, groups=groups)
    if inputs.micro is None:
        state = _with_gradient(state, sketch(inputs.rows), half, slot)
        gap = jnp.where(half == 1, _gap(inputs.step, every, growth), 1)
    else:
        state = _with_micro_batches(state, inputs.micro, sketch, slot)
        gap = _gap(inputs.step, every, growth) + 1
    state = state._replace(window_seed=seed, next_row=later(inputs.step, gap))
    size = optax.tree.size(jax.tree.map(real32, inputs.rows))
    close = functools.partial(_close, energy=energy, size=size, names=check_groups(groups))
    # The branches return only what closing changes: XLA copies whatever a branch hands on.
    changed = jax.lax.cond(
        state.filled == state.products.shape[0],
        close,
        lambda state: {name: getattr(state, name) for name in _CHANGED_BY_CLOSING},
        state,
    )
    return state._replace(**changed)


def _sketch(rows: Any, *, seed: jax.Array, width: int, groups: Groups | None) -> jax.Array:
    """[1 + groups, 2, width], float32; of the whole tree and of each group."""
    everything, *members = slots(groups, rows)
    rest = sorted(set(everything).difference(*members))
    parts = sketch_parts(rows, seed, width, [rest, *members])
    return jnp.stack([sum(parts, jnp.zeros([2, width], jnp.float32)), *parts[1:]])


def _with_gradient(
    state: GradientStreamState, row: jax.Array, half: jax.Array, slot: jax.Array
) -> GradientStreamState:
    """With the sketch of one more gradient, the first of a pair or the second."""
    # Every array is written first and read afterwards. Otherwise XLA would copy it at every
    # training step, measured or not. The first gradient of a pair thus writes a row that the
    # second one overwrites.
    pending = _put(state.pending, row, half)
    first = pending[0]
    products = _inner_products(first[0], row[0])
    return state._replace(
        pending=pending,
        half=1 - half,
        filled=slot + half,
        differences=_put(state.differences, (row - first) * jnp.float32(0.5**0.5), slot),
        products=_put(state.products, products[0, 1] / 2, slot),
        norms=_put(state.norms, (products[0, 0] + products[1, 1]) / 4, slot),
    )


def _with_micro_batches(
    state: GradientStreamState,
    micro: MicroGradients,
    sketch: Callable[[Any], jax.Array],
    slot: jax.Array,
) -> GradientStreamState:
    """With a pair from the micro-batches of one step, in the unit of the step's gradient."""
    first, second = sketch(micro.first), sketch(micro.second)
    difference = (second - first) * micro.scale
    product = jnp.vdot(first[0], second[0]) / 2
    return state._replace(
        half=jnp.zeros_like(state.half),
        filled=slot + 1,
        differences=_put(state.differences, difference, slot),
        products=_put(state.products, product, slot),
        # As of two gradients with this difference and product.
        norms=_put(state.norms, product + jnp.vdot(difference[0], difference[0]) / 2, slot),
    )


def _inner_products(first: jax.Array, second: jax.Array) -> jax.Array:
    """[2, 2], of each with each, in one product of matrices: fewer kernels to compile."""
    rows = jnp.stack([jnp.ravel(first), jnp.ravel(second)])
    return jnp.matmul(rows, rows.T, precision=jax.lax.Precision.HIGHEST)


_put = functools.partial(jax.lax.dynamic_update_index_in_dim, axis=0)


def _close(
    state: GradientStreamState, *, energy: float, size: int, names: tuple[str, ...]
) -> dict[str, jax.Array]:
    estimates = window_estimates(
        state.differences, state.products, state.norms, energy=energy, size=size, groups=names
    )
    last = dict(zip(estimates, state.estimates, strict=True))
    names_of_dimensions = [name for name in estimates if name.startswith("intrinsic_dimension")]
    unknown = jnp.stack([jnp.isnan(estimates[name][0]) for name in names_of_dimensions])
    for name, old in zip(names_of_dimensions, unknown, strict=True):
        estimates[name] = jnp.where(old, last[name], estimates[name])
    held = unknown[names_of_dimensions.index("intrinsic_dimension")]
    return {
        "evaluations": jnp.asarray(optax.safe_increment(state.evaluations)),
        "filled": jnp.zeros_like(state.filled),
        "held": jnp.where(held, optax.safe_increment(state.held), state.held),
        "new_dimensions": state.new_dimensions + (~unknown).astype(jnp.int32),
        "estimates": jnp.stack(list(estimates.values())),
    }


def _gap(step: jax.Array, every: int | None, growth: float) -> jax.Array:
    """Steps from a pair's second gradient to the next pair's first."""
    if every is not None:
        return jnp.asarray(every, jnp.int32) - 1
    return jnp.maximum(2, (growth * step.astype(jnp.float32)).astype(jnp.int32)) - 1
