"""The three phases."""

import fgo_jax as fgo
from benchmarks.methods.method import Method, kronecker_fisher

WINDOW = 0.1  # of the average of the weights


def target_acquisition(task, hp, *, transform=None, decay="adaptive", slow_share=0.5, **parts):
    """The protocol as it races, with the settings of `hp` and other parts in place of its own.

    Args:
      task: gives the warm-up, the weight decay and the refinement.
      hp: `learning_rate`; in a study also `decay_ratio`, `decay_onset`, `slow_share` or `cut`.
      transform: in place of the refinement; a dict of phases adds to it.
      decay: name of the law in `fgo.decays`.
      **parts: further arguments of `fgo.target_acquisition`.
    """
    hp = dict(hp)
    rate, cut, share = hp["learning_rate"], hp.get("cut"), hp.get("slow_share", slow_share)
    options = {"ratio": hp.get("decay_ratio", 1.0)}
    if decay == "adaptive":
        options["onset"] = hp.get("decay_onset")
    law = getattr(fgo.decays, decay)(**options)
    if transform is None or isinstance(transform, dict):
        transform = {"reask": kronecker_fisher(task), **(transform or {})}
    decaying = {"weight_decay": task.weight_decay}
    if cut is None:
        return fgo.target_acquisition(
            rate, task.warmup_steps, transform=transform, average_weights=WINDOW, decay=law,
            slow_share=share, **decaying, **parts,
        )  # fmt: skip
    own = transform["reask"]
    return fgo.phased(
        [
            fgo.acquisition(rate, task.warmup_steps, transform=own, **decaying),
            fgo.reask(rate, cut, transform=own, slow_share=share, **decaying),
            fgo.execution(rate, cut, decay=law, slow_share=share, **decaying),
        ],
        list(fgo.triggers.defaults().values()),
        fgo.probes.gradient_stream(),
        min_steps=(task.warmup_steps, 40, 0),
        average_weights=WINDOW,
    )


def raw(task, hp, **parts):
    """With the decay of raw weights. The average is kept beside for the curve of it."""
    return target_acquisition(task, {"decay_onset": 0.0, **hp}, **parts)


_FIELDS = {"natural": True, "phased": True, "cadence": 10}
METHODS = (
    Method("fgo", raw, **_FIELDS),
    Method("fgo_averaged", target_acquisition, weights="averaged", **_FIELDS),
)
