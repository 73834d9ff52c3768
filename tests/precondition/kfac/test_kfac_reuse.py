"""Factors of layers that are used several times: called twice, scanned, recurrent, vmapped."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import fgo_jax as fgo
from tests import draws
from tests.precondition.kfac.first_factors import close, first_factors, moment


class Shared(nn.Module):
    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(4)
        return layer(jnp.tanh(layer(x)))


def test_a_module_that_is_called_twice():
    """The activations' moment is a mean over both uses, the gradients' a sum."""
    x = draws.normal(6, 4)
    params, factors, drawn = first_factors(Shared(), x)
    ((a, g),) = factors["Dense_0"]
    p = params["Dense_0"]
    hidden = jnp.tanh(x @ p["kernel"] + p["bias"])
    close(a, (moment(x, constant=True) + moment(hidden, constant=True)) / 12)
    close(g, moment(drawn) + moment((drawn @ p["kernel"].T) * (1 - hidden**2)))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.LayerNorm()(x + jnp.tanh(nn.Dense(4)(x))), None


class Stack(nn.Module):
    scan: bool

    @nn.compact
    def __call__(self, x):
        if self.scan:
            scanned = nn.scan(
                nn.remat(Block), variable_axes={"params": 0}, split_rngs={"params": True}, length=3
            )
            return scanned(name="block")(x, None)[0]
        for i in range(3):
            x, _ = Block(name=f"block{i}")(x, None)
        return x


def test_scanned_and_rematerialised_layers_are_the_layers_one_by_one():
    x = draws.normal(6, 5, 4)
    params = draws.params(Stack(True), x)
    loose = {
        f"block{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params["block"]) for i in range(3)
    }

    def step(scan, p):
        # The shapes of a kernel and its bias tell whether they are stacked.
        tx = fgo.scale_by_kfac(
            lambda p, x: Stack(scan).apply({"params": p}, x), "squared_error", norm_constraint=None
        )
        return jax.jit(tx.update)(p, tx.init(p), p, batch=x)

    (together, stacked), (apart, alone) = step(True, params), step(False, loose)
    for i in range(3):
        close(stacked.factors[0][0][0][i], alone.factors[i][0][0])
        close(stacked.factors[0][0][1][i], alone.factors[i][0][1])
        for kind in range(2):
            close(stacked.factors[1 + kind][i], alone.factors[3 + 2 * i + kind])
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, atol=1e-3 * np.abs(b).max()),
            together["block"], apart[f"block{i}"],
        )  # fmt: skip


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.RNN(nn.SimpleCell(4))(x)


def test_layers_inside_a_recurrence_sum_over_time():
    x = draws.normal(3, 5, 2)
    _, factors, _ = first_factors(Recurrent(), x)
    close(factors["SimpleCell_0/i"][0][0], moment(x, constant=True) / 15)


def test_a_model_that_is_vmapped_over_examples_and_jitted():
    x = draws.normal(6, 4)
    model = Shared()
    params = draws.params(model, x)
    whole = jax.jit(lambda p, x: model.apply({"params": p}, x))
    rows = jax.jit(lambda p, x: jax.vmap(lambda row: model.apply({"params": p}, row))(x))
    for jitted in (whole, rows):
        jitted(params, x)  # its trace without interception must not be found again
    one, two = (
        jax.jit(tx.update)(params, tx.init(params), params, batch=x)[1]
        for tx in (fgo.scale_by_kfac(fn, "squared_error") for fn in (whole, rows))
    )
    jax.tree.map(close, one.factors, two.factors)
    again = fgo.scale_by_kfac(rows, "squared_error")
    for _ in range(2):  # two traces of one transformation
        update = jax.jit(lambda *a: again.update(*a, batch=x))
        update(params, again.init(params), params)
