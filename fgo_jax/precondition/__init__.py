"""Natural-gradient transformations.

Each `scale_by_*` is a direction: no learning rate, no minus sign. :func:`fgo_jax.kronecker_fisher`,
:func:`fgo_jax.kfac` and :func:`fgo_jax.fismo` apply both. (Only `fgo_jax` exports them: here
`kfac` and `fismo` are sub-packages.)
"""

from fgo_jax.precondition.composed import chain, masked
from fgo_jax.precondition.describe import describe
from fgo_jax.precondition.diagonal_fisher import scale_by_diagonal_fisher
from fgo_jax.precondition.fismo.mousse import scale_by_mousse
from fgo_jax.precondition.fismo.transform import scale_by_fismo
from fgo_jax.precondition.graft import graft
from fgo_jax.precondition.kfac import kfac_layers, scale_by_kfac
from fgo_jax.precondition.kronecker.transform import scale_by_kronecker_fisher
from fgo_jax.precondition.layer_noise import scale_by_layer_noise
from fgo_jax.precondition.low_rank_fisher import scale_by_low_rank_fisher
from fgo_jax.precondition.orthogonalise import orthogonalise
from fgo_jax.precondition.shared.preconditioner import Preconditioner
from fgo_jax.precondition.step_limits.friction_limit import scale_by_friction_limit
from fgo_jax.precondition.step_limits.softmax_radius import clip_by_softmax_radius

__all__ = [
    "Preconditioner",
    "chain",
    "clip_by_softmax_radius",
    "describe",
    "graft",
    "kfac_layers",
    "masked",
    "orthogonalise",
    "scale_by_diagonal_fisher",
    "scale_by_fismo",
    "scale_by_friction_limit",
    "scale_by_kfac",
    "scale_by_kronecker_fisher",
    "scale_by_layer_noise",
    "scale_by_low_rank_fisher",
    "scale_by_mousse",
]
