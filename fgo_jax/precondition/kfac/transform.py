"""K-FAC as a gradient transformation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax.curvature import losses
from fgo_jax.curvature.weights import Select, check_select
from fgo_jax.linalg.trees import added_up, leaf_vdot
from fgo_jax.precondition.kfac import roots, taps
from fgo_jax.precondition.kfac.estimate import estimator
from fgo_jax.precondition.kfac.layers import Axes, Layout, Paths, check_diagonal, layout
from fgo_jax.precondition.kfac.refresh import Cadence, brought_up_to_date
from fgo_jax.precondition.shared.leaves import (
    bias_correction,
    empty_field,
    f32,
    given_back,
    usable_leaves,
)
from fgo_jax.precondition.shared.model import key_data, key_of_step, model_and_batch
from fgo_jax.precondition.shared.notes import note
from fgo_jax.precondition.shared.preconditioner import Preconditioner
from fgo_jax.precondition.shared.stacks import check_factors

_NAME = "scale_by_kfac"


class ScaleByKfacState(NamedTuple):
    """State of :func:`scale_by_kfac`, grouped by how often it changes."""

    kfac_key: jax.Array  # shape=(2,), dtype=jnp.uint32; never changes.
    kfac_step: jax.Array  # shape=(), dtype=jnp.int32.
    direction: Any  # like params, dtype=jnp.float32; moving average of updates, () without b1.
    # Each of the following fields is a tuple by layer, then by diagonal leaf.
    # `optax.tree.map_params` treats it as one value that is not parameter-shaped.
    # Two fields change when factors are estimated.
    estimates: Any  # shape=(), dtype=jnp.int32; the number of estimates in the average.
    # Per layer a tuple of pairs (A, G), shape=(*stack, d, d), (*stack, blocks, d, d) or
    # (*stack, d); per diagonal leaf its Fisher, shaped like the leaf; dtype=jnp.float32.
    factors: Any
    # One field changes when factors are inverted.
    roots: Any  # damped inverse square roots, shaped like the factors; one pair per layer.


def scale_by_kfac(
    predict_fn: Callable[[Any, Any], Any],
    loss: str = "softmax_cross_entropy",
    *,
    damping: jax.typing.ArrayLike = 0.03,
    factor_decay: jax.typing.ArrayLike = 0.99,
    norm_constraint: jax.typing.ArrayLike | None = 1.0,
    b1: jax.typing.ArrayLike | None = None,
    factors_every: jax.typing.ArrayLike = 1,
    refresh_every: jax.typing.ArrayLike = 5,
    burn_in: jax.typing.ArrayLike = 10,
    approximation: str = "expand",
    diagonal: Paths = (),
    layers: Mapping[str, Axes] | None = None,
    weights: Select | None = None,
    block_size: int = 1024,
    axis_name: str | None = None,
    seed: int = 0,
) -> Preconditioner:
    r"""Natural gradient of a Flax model by Kronecker factors of activations and output gradients.

    It is a direction: no learning rate, no minus sign. :func:`fgo_jax.kfac` adds both.

    For a layer whose kernel and bias form one matrix W, with inputs a (a 1 appended for the bias)
    and gradients g of the log-likelihood with respect to its outputs,

        A = E[a a^T],   G = E[g g^T],   F ~ A kron G,
        U = (A + sqrt(damping) mean(A) I)^-1 grad W (G + sqrt(damping) mean(G) I)^-1,

    where mean(X) = tr X / dim X. This is Martens and Grosse's factored damping
    (pi = sqrt(mean(A) / mean(G))) of size damping * mean(A) mean(G). F is the Fisher of the mean
    loss over all rows of the outputs, as in :func:`fgo_jax.curvature.ggn`. Its labels are drawn
    from the model, one per row, as in :func:`fgo_jax.curvature.sampled_fisher`; the labels of the
    batch are not read. All updates U together are shortened until U^T F U = <U, grad> is at most
    norm_constraint. With b1 they are then averaged (and bias-corrected). They shrink with the
    gradient. For the learning rate see :func:`fgo_jax.kfac`.

    Each estimate runs the model once through `flax.linen.intercept_methods`: a forward pass, a
    backward pass without weight gradients, and the products that make the factors. The model may
    use nn.scan, nn.remat, nn.vmap, nn.jit, `jax.jit` and `jax.vmap` in any way. Captured are

    - nn.Dense, nn.DenseGeneral (any axes, so nn.MultiHeadDotProductAttention too), nn.Conv, and
      cells and models made of them;
    - nn.Embed: its input factor is diagonal and holds the frequencies of the tokens. For .attend
      its output factor is diagonal: the squared gradients of the logits. Where both are used, F is
      a sum of two Kronecker products; the one with the same partial traces replaces it;
    - nn.LayerNorm, RMSNorm, GroupNorm, BatchNorm, InstanceNorm over trailing axes: a diagonal
      Fisher of squared gradients, taken example (axis 0) by example;
    - parameters named by ``diagonal``, and empty leaves: squared gradients of the whole batch at
      the drawn labels (Gauss-Newton-Bartlett), an unbiased diagonal with more noise.

    A parameter of any other layer raises an error that names it. Three things go unnoticed:
    parameters read past their module (``embed.embedding.T``: use .attend, or ``diagonal``); a mask,
    since padded positions count in A; and a tree cast to half precision, in which a recurrence then
    sums its statistics (cast by the layers' ``dtype`` instead).

    A layer may be used several times for one example: along a time axis, for a convolution's
    patches, when a module is called twice, in a recurrence. "expand" takes the uses as independent:
    A is the mean and G the sum over uses, which is exact where each use has a loss term of its own.
    "reduce" takes a as the mean and g as the sum over all axes between the first and the features,
    before the outer product, which is exact for a linear layer under mean pooling. It still expands
    uses in separate calls, and embeddings.

    Sums go over the whole batch under `jax.jit`, sharded or not. Kernels and their updates keep
    their sharding; factors are small, and replicated unless the partitioner splits them. If a
    layer's statistics of a batch are not finite, its factors stay. If its gradient is not finite,
    or has squares that overflow float32, it gets a zero update and keeps its average. A layer that
    has never been seen does not move. On a busy CPU set OPENBLAS_NUM_THREADS=1.

    Args:
      predict_fn: ``(params, batch) -> outputs`` [..., C]. It calls Flax linen modules on the very
        parameters that it is given, best in evaluation mode (:mod:`fgo_jax.curvature`). For nnx:
        ``fgo_jax.integrations.flax.nnx_predict_fn``.
      loss: ``"softmax_cross_entropy"``, ``"sigmoid_cross_entropy"`` or ``"squared_error"``.
      damping: relative to mean(A) mean(G) of each layer, or to the mean of a diagonal. Much less
        than the default kept a small language model from training, as a batch determines few
        directions; a deep autoencoder trained equally well at 3e-4 to 0.03.
      factor_decay: decay rate of the factors, per estimate.
      norm_constraint: bound on <U, grad>, in units of the loss, before the learning rate (which
        multiplies it by its square); None for none.
      b1: decay rate of a moving average of updates. None keeps none, which was better at every
        learning rate tried on a deep autoencoder.
      factors_every: steps from one estimate to the next.
      refresh_every: steps from one inversion to the next.
      burn_in: first steps, each of which estimates and inverts the factors; step 1 always does.
      approximation: ``"expand"`` or ``"reduce"``.
      diagonal: parameters with a diagonal Fisher: a glob or globs of paths such as
        ``"Embed_0/*"``, or ``path -> bool``.
      layers: the result of :func:`fgo_jax.precondition.kfac_layers`. Without it the shapes of
        kernel and bias tell inputs from outputs, and a kernel without a bias is a convolution's or
        of Flax's attention. If shapes are ambiguous or the model disagrees, an error asks
        for it. :func:`fgo_jax.describe` lists the layers.
      weights: where the batch holds one weight per row, as in :func:`fgo_jax.curvature.ggn`.
      block_size: longest side with a single factor; a bias does not count. Longer ones are cut into
        the fewest equal blocks with a factor each; zeros fill up the last one, and mean(X) is that
        of all blocks. 1 makes all factors diagonal.
      axis_name: inside `jax.pmap` or `jax.shard_map`: the axis over which factors are averaged.
        Gradients are expected to be averaged already.
      seed: of the key that draws the labels.

    Returns:
      A :class:`fgo_jax.precondition.Preconditioner` whose update takes ``batch=`` and, under
      `optax.masked` or `optax.partition`, ``probe_params=`` (all parameters). Its `metric` is
      P^(-1/2) at the last inversion, the identity before the first. The state takes 4 bytes per
      parameter for the average (none without b1) and 8 (m^2 + n^2) bytes for the factors and roots
      of an m x n layer, less in blocks. Under `optax.inject_hyperparams` name in ``static_args``
      all arguments but damping, factor_decay, b1, norm_constraint and the counts of steps.

    Raises:
      ValueError: for an argument out of its range; in ``init``, for a parameter of no known layer;
        in ``update``, for a module that cannot be captured.
      TypeError: in ``update``, without ``batch=`` or without parameters.

    >>> import flax.linen as nn, jax, jax.numpy as jnp, optax
    >>> model = nn.Dense(3)
    >>> x = jax.random.normal(jax.random.key(0), (8, 4))
    >>> params = model.init(jax.random.key(1), x)["params"]
    >>> transform = scale_by_kfac(lambda params, batch: model.apply({"params": params}, batch))
    >>> state = transform.init(params)
    >>> [f.shape for f in state.factors[0][0]]  # A and G
    [(5, 5), (3, 3)]
    >>> updates, state = transform.update(params, state, params, batch=x)
    >>> params = optax.apply_updates(params, optax.tree.scale(-0.1, updates))

    Sources: Martens and Grosse, 2015 (arXiv 1503.05671), sections 3 and 6.3; Grosse and Martens,
    2016 (arXiv 1602.01407), convolutions; Ba, Grosse and Martens, 2017, the norm constraint;
    Eschenhagen et al., 2023 (arXiv 2311.00636), shared weights.
    """
    losses.check_likelihood(
        loss, _NAME, "use scale_by_kronecker_fisher, which reads gradients alone."
    )
    _checks.non_negative("damping", damping)
    _checks.fraction("factor_decay", factor_decay)
    if b1 is not None:
        _checks.fraction("b1", b1)
    if norm_constraint is not None:
        _checks.positive("norm_constraint", norm_constraint)
    _checks.integer("factors_every", factors_every)
    _checks.integer("refresh_every", refresh_every)
    _checks.integer("burn_in", burn_in, 0)
    _checks.choice("approximation", approximation, ("expand", "reduce"))
    _checks.positive_int("block_size", block_size)
    if weights is not None:
        check_select("weights", weights)
    is_diagonal = check_diagonal(diagonal)
    b1 = None if _checks.is_off(b1) else b1
    factor_decay, b1, norm_constraint = map(f32, (factor_decay, b1, norm_constraint))
    cadence = Cadence(factors_every, refresh_every, burn_in)
    estimate = estimator(
        predict_fn, loss, weights, approximation == "reduce", block_size, axis_name
    )

    def layout_of(tree: Any) -> Layout:
        return layout(tree, layers, is_diagonal, predict_fn)

    def init(params: Any) -> ScaleByKfacState:
        leaves = jax.tree.leaves(params)
        plan = layout_of(params)
        factors: list[Any] = [taps.zero_terms(layer, block_size) for layer in plan.layers]
        inverse: list[Any] = [taps.zero_terms(layer, block_size)[0] for layer in plan.layers]
        for d in plan.diagonals:
            factors.append(optax.tree.zeros_like(leaves[d.leaf], dtype=jnp.float32))
            inverse.append(optax.tree.zeros_like(leaves[d.leaf], dtype=jnp.float32))
        note(_NAME, params, taps.treatments(plan, factors, inverse))
        counts = tuple(jnp.zeros((), jnp.int32) for _ in factors)
        return ScaleByKfacState(
            kfac_key=key_data(seed),
            kfac_step=jnp.zeros((), jnp.int32),
            direction=() if b1 is None else optax.tree.zeros_like(params, dtype=jnp.float32),
            estimates=counts if leaves else empty_field(),
            factors=tuple(factors) if leaves else empty_field(),
            roots=tuple(inverse) if leaves else empty_field(),
        )

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        leaves, treedef = jax.tree.flatten(updates)
        step = jnp.asarray(optax.safe_increment(state.kfac_step))
        if not leaves:
            return updates, optax.tree.cast_like(state._replace(kfac_step=step), state)
        given = {name: extra for name, extra in extra_args.items() if extra is not None}
        model, batch = model_and_batch(_NAME, params, given)
        plan = layout_of(updates)
        wanted = [taps.shapes(layer, block_size) for layer in plan.layers]
        wanted += [jnp.shape(leaves[d.leaf]) for d in plan.diagonals]
        check_factors(_NAME, tuple(wanted), state.factors)
        key = key_of_step(state.kfac_key, state.kfac_step)
        if axis_name is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        counts, factors, inverse = brought_up_to_date(
            plan,
            (state.estimates, state.factors, state.roots),
            state.kfac_step,
            model,
            batch,
            key,
            cadence=cadence,
            estimate=estimate,
            decay=factor_decay,
            damping=damping,
        )

        grads, good = usable_layers(plan, leaves)
        out = roots.apply_all(plan, inverse, roots.apply_all(plan, inverse, grads))
        if norm_constraint is not None:
            out = shortened(out, grads, norm_constraint)
        good = [ok & jnp.isfinite(u) for ok, u in zip(good, out, strict=True)]  # P^-1 may be large
        direction: Any = ()
        if b1 is not None:
            old = treedef.flatten_up_to(state.direction)
            moved = [
                jnp.where(ok, b1 * m + (1 - b1) * u, m)
                for ok, m, u in zip(good, old, out, strict=True)
            ]
            direction = treedef.unflatten(moved)
            out = [m / bias_correction(b1, step) for m in moved]
        out = [given_back(u, ok, g) for ok, u, g in zip(good, out, leaves, strict=True)]
        new = ScaleByKfacState(state.kfac_key, step, direction, counts, factors, inverse)
        return treedef.unflatten(out), optax.tree.cast_like(new, state)

    def metric(grads: Any, state: Any) -> Any:
        leaves, treedef = jax.tree.flatten(grads)
        if not leaves:
            return grads
        leaves = [jnp.asarray(g, jnp.float32) for g in leaves]
        rows = roots.apply_all(layout_of(grads), state.roots, leaves)
        rows = [jnp.where(state.kfac_step == 0, g, r) for g, r in zip(leaves, rows, strict=True)]
        return treedef.unflatten(rows)

    return Preconditioner(init, update, metric, keeps_scale=False)


def usable_layers(plan: Layout, leaves: list[Any]) -> tuple[list[jax.Array], list[jax.Array]]:
    """Gradients in float32, and whether each can be squared, with all others of its layer."""
    grads, alone = usable_leaves(leaves)
    good = list(alone)
    for layer in plan.layers:
        for i in layer.leaves:
            good[i] = jnp.all(jnp.stack([alone[j] for j in layer.leaves]))
    return [jnp.where(ok, g, 0.0) for ok, g in zip(good, grads, strict=True)], good


def shortened(updates: list[Any], grads: list[Any], limit: Any) -> list[Any]:
    """The updates u, shortened until u^T P u <= limit, where P u = g; zero where that overflows."""
    squares = [leaf_vdot(g, u) for g, u in zip(grads, updates, strict=True)]
    total = added_up([jnp.where(jnp.isfinite(s), s, 0.0) for s in squares])
    scale = jnp.sqrt(limit / jnp.maximum(total, limit))
    return [
        jnp.where(jnp.isfinite(s), scale * u, 0.0) for s, u in zip(squares, updates, strict=True)
    ]
