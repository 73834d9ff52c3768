"""Every public gradient transformation, once, with what its checks need to know.

K-FAC is missing, because it runs a Flax model on a batch. Its contracts are in
tests/precondition/kfac/test_kfac_contracts.py and tests/precondition/test_aliases.py.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import fgo_jax as fgo
from fgo_jax.linalg import mesh


@dataclasses.dataclass(frozen=True, eq=False)  # a row is itself alone, and a key of caches
class Row:
    """A transformation that, at `learning_rate`, descends on its own.

    Attributes:
      make: `learning rate -> transformation`.
      learning_rate: at which it solves optax's convergence checks.
      factory: the function to put under `inject_hyperparams`, or None for a
        transformation without a learning rate of its own.
      static_args: for `inject_hyperparams`.
      kwargs: for `factory`, beside `learning_rate`.
      extras: keyword arguments that every `update` needs.
    """

    name: str
    make: Callable[[Any], optax.GradientTransformation]
    learning_rate: float = 0.03
    factory: Callable | None = None
    static_args: tuple[str, ...] = ()
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    extras: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __str__(self):
        return self.name


def _alias(name, factory, learning_rate=0.03, static_args=(), **kwargs) -> Row:
    def make(rate):
        return factory(learning_rate=rate, **kwargs)

    return Row(name, make, learning_rate, factory, static_args, kwargs)


def _direction(name, factory, learning_rate=0.03, **kwargs) -> Row:
    def make(rate):
        return optax.chain(factory(**kwargs), optax.scale_by_learning_rate(rate))

    return Row(name, make, learning_rate)


def _alone(build):
    """A phase alone; `inject_hyperparams` reads the arguments of what builds it."""

    @functools.wraps(build)
    def make(*args, **kwargs):
        return fgo.phased([build(*args, **kwargs)], [])

    return make


def _phased(learning_rate):
    return fgo.phased(
        [
            fgo.acquisition(learning_rate, transform=ADAM),
            fgo.execution(learning_rate, cut=0.0, transform=ADAM),
        ],
        [fgo.triggers.after(400)],
    )


def _slow(learning_rate):
    return optax.chain(optax.adam(learning_rate), fgo.slow_momentum(0.5))


def _averaging(learning_rate):
    return optax.chain(optax.adam(learning_rate), fgo.average_weights(0.1))


def _primal(learning_rate):
    return optax.chain(optax.adam(learning_rate, b1=0.0), fgo.scale_by_primal_averaging(0.9, 0.9))


def _flat(leaf):
    """A leaf as a vector. One that is split over explicit axes has to be gathered first."""
    return jnp.ravel(mesh.replicate(leaf, leaf))


def _triple_momentum(rate):
    # It is linear in the gradient, so a factor behind it is one of its own rate.
    descent = optax.chain(fgo.triple_momentum(1.0, 0.1), optax.scale(-1.0))
    return optax.chain(descent, optax.scale_by_learning_rate(rate))


def _levelled():
    return optax.chain(optax.scale_by_adam(), fgo.orthogonalise(0.15))


def _limited(factory, **kwargs):
    """Behind Adam, with the extra arguments that a call of `update` needs.

    The model returns its parameters, so that the friction along a step is its squared length.
    """

    def predict(params, batch):
        everything = jnp.concatenate([_flat(p) for p in jax.tree.leaves(params)])
        return batch.astype(everything.dtype) * everything

    def make(rate):
        tx = optax.chain(optax.adam(rate), factory(predict, **kwargs))

        def update(grads, state, params=None, **extra_args):
            given = {"batch": jnp.ones((2, 1)), "grad": grads}
            return tx.update(grads, state, params, **given, **extra_args)

        return optax.GradientTransformationExtraArgs(tx.init, update)

    return make


def _on_model(name, factory, learning_rate=0.03, **kwargs) -> Row:
    """A direction that takes its curvature from a model."""
    row = _direction(name, factory, learning_rate, **kwargs)
    return dataclasses.replace(row, extras={"batch": jnp.ones((2, 1))})


def _residuals(params, batch):
    """A model [n, C] of which half the sum of squares is a loss of optax's convergence checks."""
    if getattr(params, "shape", None) == (2,):
        x, y = params
        residuals = jnp.stack([1.0 - x, 10.0 * (y - jnp.square(x))])
    else:
        leaves = [jnp.zeros(1), *map(_flat, jax.tree.leaves(params))]
        residuals = jnp.concatenate([leaf.astype(jnp.float32) for leaf in leaves])
    return batch * 2.0**0.5 * residuals


def _options(factory):
    """All options but the learning rate.

    A traced decay rate is rounded to float32, and eigenvectors amplify the difference.
    """
    return tuple(name for name in inspect.signature(factory).parameters if name != "learning_rate")


PHASE_STATIC = ("transform", "mask")
ADAM = optax.scale_by_adam()

TABLE = (
    _alias(
        "target_acquisition",
        fgo.target_acquisition,
        static_args=fgo.STATIC_ARGS,
        warmup_steps=10,
    ),
    _alias(
        "target_acquisition_all_options",
        fgo.target_acquisition,
        static_args=fgo.STATIC_ARGS,
        warmup_steps=10,
        clip_norm=100.0,
        average_weights=0.1,
        weight_decay=1e-6,
        total_steps=1500,
        decay=fgo.decays.one_minus_sqrt(),
        transform={"acquisition": ADAM},
    ),
    _alias("phased", _phased),
    # Alone and by Adam: the protocol's phases above have the default transform.
    _alias("acquisition", _alone(fgo.acquisition), static_args=PHASE_STATIC, transform=ADAM),
    _alias("reask", _alone(fgo.reask), static_args=PHASE_STATIC, cut=0.0, transform=ADAM),
    _alias(
        "execution",
        _alone(fgo.execution),
        static_args=(*PHASE_STATIC, "decay"),
        cut=0.0,
        transform=ADAM,
        decay=fgo.decays.hyperbolic(1000),
    ),
    # The aliases are chains of the directions with the same options (test_aliases.py), so these
    # have no rows of their own without options of their own.
    _alias(
        "kronecker_fisher",
        fgo.kronecker_fisher,
        static_args=_options(fgo.kronecker_fisher),
        weight_decay=1e-6,
    ),
    # An orthogonalised step keeps its size: a small one, where Adam's are as for all others.
    _alias("fismo", fgo.fismo, static_args=_options(fgo.fismo), beta=0.8, consistent_rms=0.15),
    _alias("slow_momentum", _slow),
    _alias("average_weights", _averaging),
    _alias("scale_by_primal_averaging", _primal),
    Row("triple_momentum", _triple_momentum, 0.001),
    _direction(
        "scale_by_kronecker_fisher_vectors", fgo.scale_by_kronecker_fisher, vector_factors=True
    ),
    _direction("scale_by_mousse", fgo.scale_by_mousse, beta=0.8, consistent_rms=0.15),
    _direction("orthogonalise", _levelled),
    _direction(
        "graft",
        fgo.graft,
        magnitude=ADAM,
        direction=fgo.scale_by_kronecker_fisher(),
        weight=optax.linear_schedule(1.0, 0.0, 100),
    ),
    Row("accumulate", lambda rate: fgo.accumulate(optax.adam(rate), 2)),
    Row(
        "keep_best",
        lambda rate: fgo.keep_best(optax.adam(rate)),
        extras={"validation_value": jnp.float32(1.0)},
    ),
    _direction("scale_by_layer_noise", fgo.scale_by_layer_noise, direction=ADAM),
    Row("clip_by_softmax_radius", _limited(fgo.clip_by_softmax_radius, radius=20.0)),
    Row(
        "scale_by_friction_limit",
        _limited(fgo.scale_by_friction_limit, loss="squared_error", radius=20.0),
    ),
    _on_model(
        "scale_by_diagonal_fisher",
        fgo.scale_by_diagonal_fisher,
        predict_fn=_residuals,
        loss="squared_error",
    ),
    _on_model(
        "scale_by_diagonal_fisher_hutchinson",
        fgo.scale_by_diagonal_fisher,
        operator=fgo.curvature.ggn(_residuals, "squared_error"),
    ),
    # Leaves without a Flax layer around them: all of the checks' are.
    _on_model(
        "scale_by_kfac",
        fgo.scale_by_kfac,
        learning_rate=0.1,
        predict_fn=_residuals,
        loss="squared_error",
        diagonal="*",
    ),
    _on_model(
        "scale_by_low_rank_fisher",
        fgo.scale_by_low_rank_fisher,
        operator=fgo.curvature.ggn(_residuals, "squared_error"),
        rank=2,
        num_steps=2,
        every=5,
    ),
)
