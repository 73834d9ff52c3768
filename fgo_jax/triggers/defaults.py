"""The triggers of the three phases."""

from __future__ import annotations

from collections.abc import Collection

from fgo_jax.triggers.thresholds import below, plateau
from fgo_jax.triggers.trends import increasing, stall, stopped_falling
from fgo_jax.triggers.trigger import Trigger, if_given


def defaults(signals: Collection[str] | None = None, *, patience: int = 10) -> dict[str, Trigger]:
    """The triggers of :func:`fgo_jax.target_acquisition`, by the phase that each ends.

    - ``acquisition``: the dimension of the gradient noise falls more slowly than 1/step, the
      agreement of successive gradients is below 0.75, and no rise of the loss is proven (where a
      loss is given).
    - ``reask``: the agreement of successive gradients is below 0.75. Only
      :func:`fgo_jax.probes.gradient_stream` measures that agreement. With another probe acquisition
      ends without it, and re-ask when the dimension is at rest.
    - ``execution``: ``patience`` reported validations in a row brought no improvement of a
      thousandth, as :func:`fgo_jax.triggers.plateau` measures it. This raises the flag of
      :func:`fgo_jax.should_stop`. Without a ``validation_value`` it never holds.

    Args:
      signals: the names that the probe measures; None for those of the default probe.
      patience: of the trigger of ``execution``, in reports. A noisy loss that still improves
        slowly needs more.

    Returns:
      A dict from the phase's name to its trigger. Pass the ones that you change to
      ``triggers=`` of :func:`fgo_jax.target_acquisition`.

    Raises:
      TypeError: for signals that are no collection of names.
      ValueError: for a patience that is not a positive integer.

    Example:
      >>> import fgo_jax as fgo
      >>> rests = fgo.triggers.stall("intrinsic_dimension")
      >>> later = fgo.triggers.defaults()["reask"] & rests
      >>> tx = fgo.target_acquisition(3e-3, triggers={"reask": later})
      >>> tx = fgo.target_acquisition(3e-3, triggers=fgo.triggers.defaults(patience=5))

    Source: Friction-Guided Optimization (2026), section 4. The paper also asks that the loss
    still fall. Here acquisition can also end while the loss is constant.
    """
    ends, rests = stopped_falling("intrinsic_dimension"), stall("intrinsic_dimension")
    if signals is None or "agreement" in signals:
        ends, rests = ends & below("agreement", 0.75), below("agreement", 0.75)
    return {
        "acquisition": ends & if_given(~increasing("loss"), "loss", otherwise=1),
        "reask": rests,
        "execution": if_given(plateau("validation", patience=patience), "validation", otherwise=0),
    }
