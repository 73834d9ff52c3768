"""What is measured during training, and how often, inside the compiled step.

| probe | reads | measures |
|---|---|---|
| `gradient_stream()` | the gradients of training | covariance of the gradient noise |
| `gram(rows_fn)` | single-example gradients of `batch=` | covariance, or empirical Fisher |
| `hutchinson(operator)` | products with a curvature operator | its trace and dimension |
| `lanczos(operator)` | products with a curvature operator | its spectrum |
| `trajectory()` | the parameters | dimension of their path, and of a random walk |
| `commutator(loss_fn)` | gradients of parts of `batch=` | how much their order matters |
| `joined(*probes)` | what they read | what they measure, each at its own cadence |

`gradient_stream` and `trajectory` need no extra pass and no extra argument. The others run the
model on a part of `batch=` at their own cadence. :class:`Probe` shows how to write another one.

On a mesh with explicit axes, a model that splits examples over devices needs even parts: pass
`examples=` a multiple of twice the number of devices. `gram` differentiates one example at a
time and `jax.vmap` does not split parameters and examples over one axis, so use it with parameters
that are split over other axes, or not at all.
"""

from fgo_jax.probes.commutator import commutator
from fgo_jax.probes.example_rows import example_gradients
from fgo_jax.probes.gradient_stream import gradient_stream
from fgo_jax.probes.gram import gram
from fgo_jax.probes.groups import layer_groups
from fgo_jax.probes.hutchinson import hutchinson
from fgo_jax.probes.joined import joined
from fgo_jax.probes.lanczos import lanczos
from fgo_jax.probes.probe import Estimate, MicroGradients, Probe, ProbeInputs
from fgo_jax.probes.trajectory import trajectory

__all__ = [
    "Estimate",
    "MicroGradients",
    "Probe",
    "ProbeInputs",
    "commutator",
    "example_gradients",
    "gradient_stream",
    "gram",
    "hutchinson",
    "joined",
    "lanczos",
    "layer_groups",
    "trajectory",
]
