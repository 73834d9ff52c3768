"""An nnx model as a function of its parameters, in evaluation mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flax import nnx

from fgo_jax.integrations.flax import through_linen


def nnx_predict_fn(
    model: nnx.Module,
    call: Callable[[Any, Any], Any] = lambda model, batch: model(batch),
    *,
    wrt: Any = nnx.Param,
    batch_statistics: bool = False,
) -> Callable[[Any, Any], Any]:
    """An nnx model as ``(params, batch) -> outputs``, which curvature and K-FAC take.

    It runs in evaluation mode, whatever the mode of `model`: no dropout, and batch
    normalisation by the running statistics. Non-parameters, such as these statistics, are
    copied now; call it again after training changed them. The model itself never changes.

    For :func:`fgo_jax.kfac` the layers `Linear`, `LinearGeneral`, `Conv`, `Embed` and the
    normalisations are computed by their linen twins, where K-FAC sees their activations. It
    takes the parameters as `nnx.Optimizer` hands them on. Layers inside `nnx.scan` or
    `nnx.vmap`, and any other parameters, need ``diagonal=``, as in linen.

    Args:
      model: the model.
      call: ``(model, batch) -> outputs``: which part of the batch it reads.
      wrt: which variables are the parameters, as for `nnx.Optimizer`. All others keep their
        present values.
      batch_statistics: let batch normalisation use the statistics of the batch, as in
        training. A probe inside a training step needs that, because current running
        statistics are soon outdated. Examples of a batch then depend on each other.

    Returns:
      A function of ``params`` and ``batch``. The parameters are ``nnx.state(model, wrt)``, with
      variables or with arrays.

    Raises:
      ValueError: when called, for parameters that are not those of the model.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> import fgo_jax as fgo
      >>> from fgo_jax.integrations.flax import nnx_predict_fn
      >>> model = nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Dropout(0.5))
      >>> predict = nnx_predict_fn(model, lambda model, batch: model(batch["x"]))
      >>> params, batch = nnx.state(model, nnx.Param), {"x": jnp.ones((4, 3))}
      >>> matvec = fgo.curvature.ggn(predict)(params, batch)
      >>> jnp.abs(matvec(params)["layers"][0]["bias"][...]).shape
      (2,)
      >>> optimizer = nnx.Optimizer(model, fgo.kfac(0.1, predict), wrt=nnx.Param)

    Then ``optimizer.update(model, grads, batch=batch)`` makes a step.

    Source: this library.
    """
    copy = nnx.merge(*nnx.split(model))
    modes = {"deterministic": True, "use_running_average": not batch_statistics}
    for name, mode in modes.items():
        copy.set_attributes(**{name: mode}, raise_if_not_found=False)
    graph, template, rest = nnx.split(copy, wrt, ...)
    # Arrays without boxes: a call could write to the boxes, which the model shares.
    rest, paths = nnx.as_pure(rest), tuple(nnx.to_flat_state(template).paths)

    def predict(params: Any, batch: Any) -> Any:
        leaves = [_at(params, path) for path in paths]
        whole = nnx.merge(graph, nnx.from_flat_state(zip(paths, leaves, strict=True)), rest)
        through_linen.reroute(whole, params, paths)
        return call(whole, batch)

    predict.captures_nnx = True  # pyright: ignore[reportFunctionMemberAccess]; K-FAC asks
    return predict


def _at(params: Any, path: tuple[Any, ...]) -> Any:
    try:
        for key in path:
            params = params[key]
        return params.get_value() if isinstance(params, nnx.Variable) else params
    except (KeyError, TypeError):
        name = "/".join(map(str, path))
        raise ValueError(
            f"the parameters have no {name}: pass nnx.state(model, wrt) of the model that "
            "nnx_predict_fn was given."
        ) from None
