"""The other transforms of the library, each by itself at a constant rate."""

import optax

import fgo_jax as fgo
from benchmarks.methods import schedules
from benchmarks.methods.method import TRANSFORM_TASKS, Method, alone, descend, kronecker_fisher
from benchmarks.methods.muon import dimensions

# As Muon is used here: the same leaves go to Adam, and updates have the size of its own.
_AS_MUON = {"consistent_rms": 0.2, "weight_dimension_numbers": dimensions}


def _kfac(task):
    # Learned positions belong to no layer that K-FAC knows.
    diagonal = ("positions",) if task.name == "char_gpt" else ()
    return fgo.scale_by_kfac(task.predict, task.loss_name, diagonal=diagonal)


def _in_blocks(text, **options):
    sizes = {"char_gpt": text, "digits_autoencoder": 32}
    return alone(lambda task: fgo.scale_by_kronecker_fisher(block_size=sizes[task.name], **options))


def _orthogonalised(task):
    return fgo.precondition.chain(kronecker_fisher(task), fgo.orthogonalise(**_AS_MUON))


def _by_layer_noise(direction):
    return fgo.scale_by_layer_noise(direction, weight_dimension_numbers=dimensions)


def _muon_by_layer_noise(task):
    del task  # Muon's own rate is one here, and its minus sign is taken back.
    muon = optax.contrib.muon(1.0, muon_weight_dimension_numbers=dimensions, consistent_rms=0.2)
    return _by_layer_noise(optax.chain(muon, optax.scale(-1.0)))


def _primal_averaging(task, hp):
    """In the place of the momentum, with the published numbers."""
    steps = descend(fgo.scale_by_kronecker_fisher(b1=0.0), task, schedules.constant(task, hp))
    return optax.chain(steps, fgo.scale_by_primal_averaging(0.9967, 0.7))


def _compared(name, build, transform="", cadence=10, **fields):
    kinds = {"natural": True, "only": TRANSFORM_TASKS, "cadence": cadence}
    return Method(name, build, transform=transform or f"scale_by_{name}", **kinds, **fields)


_SHAMPOO = {"power": 0.25, "corrected": False}
_NEWTON = {"needs_batch": True, "update_size": "newton"}
METHODS = (
    # Inverse fourth roots of both factors; square roots of both would be power 1/2.
    _compared("shampoo_power", alone(lambda _: fgo.scale_by_kronecker_fisher(**_SHAMPOO)),
              "scale_by_kronecker_fisher(power=0.25, corrected=False)"),
    _compared("natural_gradient_blocks", _in_blocks(16),
              "scale_by_kronecker_fisher(block_size=width / 4)"),
    _compared("natural_gradient_wide_blocks", _in_blocks(64, refresh_every=2),
              "scale_by_kronecker_fisher(block_size=longest side / 4, refresh_every=2)", cadence=2),
    _compared("kfac", alone(_kfac), cadence=5, **_NEWTON),
    _compared("diagonal_fisher",
              alone(lambda task: fgo.scale_by_diagonal_fisher(task.predict, task.loss_name)),
              needs_batch=True),
    _compared("low_rank_fisher", alone(lambda task: fgo.scale_by_low_rank_fisher(
        fgo.curvature.ggn(task.predict, task.loss_name))), cadence=100, **_NEWTON),
    _compared("fismo", alone(lambda _: fgo.scale_by_fismo(unit_gradients=True, **_AS_MUON))),
    _compared("mousse", alone(lambda _: fgo.scale_by_mousse(**_AS_MUON))),
    _compared("natural_gradient_orthogonalised", alone(_orthogonalised),
              "scale_by_kronecker_fisher, orthogonalise"),
    _compared("natural_gradient_layer_noise", alone(lambda t: _by_layer_noise(kronecker_fisher(t))),
              "scale_by_layer_noise(scale_by_kronecker_fisher)"),
    _compared("muon_layer_noise", alone(_muon_by_layer_noise), "scale_by_layer_noise(muon)"),
    _compared("natural_gradient_primal_averaging", _primal_averaging,
              "scale_by_kronecker_fisher(b1=0), scale_by_primal_averaging",
              eval_params=fgo.eval_params),
)  # fmt: skip
