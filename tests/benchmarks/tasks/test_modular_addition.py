"""The table of sums, its splits, and where the sum is read."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.tasks import get_task
from benchmarks.tasks.modular_addition import EQUALS, PRIME, TRAIN_SHARE

TASK = get_task("modular_addition")


def test_the_splits_are_the_whole_table_once():
    data = TASK.data(0)
    tokens = np.concatenate([part["tokens"] for part in data.values()])
    labels = np.concatenate([part["label"] for part in data.values()])
    assert len(set(map(tuple, tokens))) == len(tokens) == PRIME**2
    assert (tokens[:, 2] == EQUALS).all()
    assert tokens[:, :2].max() == PRIME - 1
    np.testing.assert_array_equal((tokens[:, 0] + tokens[:, 1]) % PRIME, labels)
    assert len(data["train"]["label"]) == round(TRAIN_SHARE * PRIME**2)


def test_a_batch_is_of_training_pairs():
    data = TASK.data(0)
    batch = jax.jit(TASK.batch)(data, jax.random.key(0), 0)
    train = set(map(tuple, np.asarray(data["train"]["tokens"])))
    assert set(map(tuple, np.asarray(batch["tokens"]))) <= train


def test_the_sum_is_read_after_the_last_token():
    params = jax.jit(TASK.init)(jax.random.key(0))
    tokens = jnp.asarray([[3, 5, EQUALS], [3, 6, EQUALS], [4, 5, EQUALS]])
    logits = jax.jit(TASK.predict)(params, {"tokens": tokens})
    assert logits.shape == (3, PRIME + 1)
    assert not np.allclose(logits[0], logits[1])
    assert not np.allclose(logits[0], logits[2])
