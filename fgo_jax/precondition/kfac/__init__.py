"""K-FAC: Kronecker factors from the activations and output gradients of Flax layers."""

from fgo_jax.precondition.kfac.capture import kfac_layers
from fgo_jax.precondition.kfac.layers import Axes
from fgo_jax.precondition.kfac.transform import ScaleByKfacState, scale_by_kfac

__all__ = ["Axes", "ScaleByKfacState", "kfac_layers", "scale_by_kfac"]
