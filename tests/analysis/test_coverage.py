"""Whether the stated errors of a spectrum are honest, on Hessians of random small models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import fgo_jax as fgo
from tests.problems import mlp_batch, mlp_loss, mlp_params

HESSIAN = fgo.curvature.hessian(mlp_loss)
FIGURES = ("trace", "trace_square", "participation_ratio", "energy_rank", "negative_share")
MODELS = 50


@jax.jit
def model(seed, steps):
    """Parameters after some steps of gradient descent, their batch, and the dense Hessian."""
    batch = mlp_batch(seed, 64)
    # Inputs of unequal variance, as data has them: the spectrum then spans decades.
    batch["x"] = 2.0 * batch["x"] * 0.6 ** jnp.arange(8)
    params = mlp_params(seed, width=17)

    def descend(_, params):
        return jax.tree.map(lambda p, g: p - 0.3 * g, params, jax.grad(mlp_loss)(params, batch))

    params = jax.lax.fori_loop(0, steps, descend, params)
    flat, unravel = ravel_pytree(params)
    return params, batch, jax.hessian(lambda x: mlp_loss(unravel(x), batch))(flat)


@functools.cache
def models():
    """Parameters, a batch and the truths of each; all numbers of steps meet the same ones."""
    found = []
    for seed in range(MODELS):
        params, batch, dense = model(seed, (0, 20, 100, 400)[seed % 4])
        eigenvalues = np.linalg.eigvalsh(np.asarray(dense, np.float64))
        found.append((params, batch, truths(eigenvalues)))
    return found


def truths(eigenvalues):
    sizes = np.sort(np.abs(eigenvalues))[::-1]
    held = np.cumsum(sizes)
    return (
        np.sum(eigenvalues),
        np.sum(sizes**2),
        held[-1] ** 2 / np.sum(sizes**2),
        1 + np.sum(held < 0.9 * held[-1]),
        np.sum(np.maximum(-eigenvalues, 0)) / held[-1],
    )


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "starts"), [(12, 6), (24, 3), (48, 6)])
def test_errors_cover_the_truth_at_any_number_of_steps(steps, starts):
    """90 % of the figures lie within two standard errors; few are marked as unresolved."""
    # The figures are the same for any top up to half of the steps, and each costs a product.
    top = 1 if steps > 20 else 10
    hits, resolved = dict.fromkeys(FIGURES, 0), dict.fromkeys(FIGURES, 0)
    for seed, (params, batch, expected) in enumerate(models()):
        report = fgo.spectrum(
            HESSIAN, params, batch, key=jax.random.key(seed), num_steps=steps, num_starts=starts,
            top=top,
        )  # fmt: skip
        for name, truth in zip(FIGURES, expected, strict=True):
            value, error = map(float, getattr(report, name))
            resolved[name] += np.isfinite(error)
            hits[name] += np.isfinite(error) and abs(value - truth) <= 2 * error
    assert min(resolved.values()) >= 0.8 * MODELS, resolved
    for name in FIGURES:
        assert hits[name] >= 0.9 * resolved[name], (name, hits, resolved)


def test_a_run_too_short_to_show_its_truncation_is_unresolved():
    values = jnp.linspace(-1.0, 3.0, 40)
    operator = lambda params, batch: lambda v: values * v  # noqa: E731
    report = fgo.spectrum(operator, jnp.zeros(40), 0, num_steps=2, top=1)
    assert np.isinf(report.energy_rank.error)
    assert np.isinf(report.participation_ratio.error)
    assert np.isfinite(report.trace.error)  # of a polynomial, so two steps are enough
    assert "(unresolved)" in str(report)
    last = str(report).splitlines()[-2:]
    assert last[0].startswith("Not resolved by 2 steps: participation_ratio, energy_rank")
    assert "num_steps=, such as 4" in last[1]
