"""What tasks with a network and fixed examples share: splits, batches, loss and test."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax


def parted(order: np.ndarray, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Successive parts of these sizes, by name; the last one is what remains."""
    ends = np.cumsum(list(sizes.values()))[:-1]
    return dict(zip(sizes, np.split(order, ends), strict=True))


def drawn(examples: Any, key: jax.Array, count: int) -> Any:
    """So many examples, drawn with replacement."""
    rows = jax.random.randint(key, (count,), 0, jax.tree.leaves(examples)[0].shape[0])
    return jax.tree.map(lambda leaf: leaf[rows], examples)


def of_labels(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """Cross-entropy of each label, and whether it is the likeliest."""
    return {
        "cross_entropy": optax.softmax_cross_entropy_with_integer_labels(logits, labels),
        "accuracy": (logits.argmax(-1) == labels).astype(jnp.float32),
    }


def supervised(
    splits: Callable[[], Any], model: nn.Module, field: str, shape: tuple[int, ...],
    dtype: Any = jnp.float32, *, outcomes: Callable[[Any, Any], dict[str, jax.Array]] = of_labels,
    loss_name: str = "softmax_cross_entropy", at_once: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The fields of a `Task` that follow from its examples and its network.

    Args:
      splits: `() -> {"train": ..., "validation": ..., "test": ...}`, the same for all seeds.
      field: of a batch, what the model reads: of this shape, with the batch's axis, and dtype.
      outcomes: `(predictions, batch["label"]) -> {name: f32 [...]}` of every example. Their
        means are the test; that of "cross_entropy" is the loss and the validation metric too.
      loss_name: what `fgo_jax.curvature` calls that loss.
      at_once: examples in one pass of validation and test, where memory does not hold all.
    """

    def init(key):
        return model.init(key, jnp.zeros(shape, dtype))["params"]

    def predict(params, batch) -> Any:
        return model.apply({"params": params}, batch[field])

    def judged(params, examples):
        return outcomes(predict(params, examples), examples["label"])

    def in_parts(params, examples):
        if at_once is None:
            return judged(params, examples)

        def one(example):
            return judged(params, jax.tree.map(lambda leaf: leaf[None], example))

        return jax.lax.map(one, examples, batch_size=at_once)

    def loss(params, batch):
        return judged(params, batch)["cross_entropy"].mean()

    def evaluate(data, params):
        return in_parts(params, data["validation"])["cross_entropy"].mean()

    def test(data, params):
        return {name: each.mean() for name, each in in_parts(params, data["test"]).items()}

    return {
        "data": lambda seed: splits(), "init": init, "predict": predict, "loss": loss,
        "loss_name": loss_name, "evaluate": evaluate, "test": test,
        "metric": "validation cross-entropy",
    }  # fmt: skip
