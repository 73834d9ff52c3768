"""The weights of the best validation, kept inside a scan, under wrappers and in checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import fgo_jax as fgo

NAN = float("nan")
PARAMS = {"w": jnp.linspace(0.0, 1.0, 3), "b": jnp.ones((), jnp.bfloat16)}
# Not measured, a value that is held, an infinite one, and the best one twice.
REPORTS = [NAN, 0.7, 0.7, NAN, float("-inf"), 0.4, 0.4, 0.9, 0.9, 0.4, NAN, 0.5]


def run(tx, reports=REPORTS, eval_fn=lambda state, params: params):
    """The last (params, state), and what `eval_fn` said before every call."""

    def call(carry, report):
        params, state = carry
        seen = eval_fn(state, params)
        grads = jax.tree.map(lambda p: p + 1, params)
        updates, state = tx.update(grads, state, params, validation_value=report)
        return (optax.apply_updates(params, updates), state), seen

    start = PARAMS, tx.init(PARAMS)
    return jax.jit(lambda c: jax.lax.scan(call, c, jnp.float32(reports)))(start)


def same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def at(history, index):
    return jax.tree.map(lambda x: x[index], history)


def schedule_free():
    return optax.contrib.schedule_free(optax.sgd(0.1), 0.1)


@pytest.mark.parametrize(
    ("optimizer", "eval_fn"),
    [
        (optax.sgd(0.1), None),
        (optax.chain(optax.sgd(0.1), fgo.average_weights(0.5)), fgo.eval_params),
        (schedule_free(), optax.contrib.schedule_free_eval_params),
    ],
    ids=["parameters", "average", "eval_fn"],
)
def test_it_keeps_what_was_validated_at_the_lowest_report(optimizer, eval_fn):
    own = optax.contrib.schedule_free_eval_params
    tx = fgo.keep_best(optimizer, eval_fn if eval_fn is own else None)
    validated = eval_fn or (lambda state, params: params)
    (params, state), seen = run(tx, eval_fn=lambda s, p: validated(s.inner_opt_state, p))
    same(fgo.best_params(state, params), at(seen, 5))
    assert optax.tree.get(state, "best_step") == 5
    assert optax.tree.get(state, "best_validation") == jnp.float32(0.4)
    assert not np.array_equal(at(seen, 5)["w"], at(seen, 6)["w"])


@pytest.mark.parametrize("outside", [True, False])
@pytest.mark.parametrize("wrap", [optax.MultiSteps, fgo.accumulate])
def test_micro_batches_may_be_inside_and_outside(wrap, outside):
    optimizer = optax.sgd(0.1)
    tx = wrap(fgo.keep_best(optimizer), 2) if outside else fgo.keep_best(wrap(optimizer, 2))
    # Held over both micro-batches of a step, as optax passes only the last one's.
    (params, state), seen = run(tx, np.repeat([0.7, 0.4, 0.5], 2))
    same(fgo.best_params(state, params), at(seen, 2))
    assert optax.tree.get(state, "best_step") == (1 if outside else 2)


def test_before_the_first_report_the_best_are_the_last():
    (params, state), _ = run(fgo.keep_best(optax.sgd(0.1)), [NAN, NAN])
    same(fgo.best_params(state, params), params)


def test_the_devices_of_an_axis_decide_by_their_mean():
    tx = fgo.keep_best(optax.sgd(1.0), axis_name="i")
    params = jnp.ones(())

    def device(reports):
        state = tx.init(params)
        for number, report in enumerate(reports):
            _, state = tx.update(params, state, params + number, validation_value=report)
        return state.best_step, state.best_validation

    found = jax.vmap(device, axis_name="i")(jnp.float32([[1.0, 0.0, 2.0], [1.0, 3.0, 0.5]]))
    np.testing.assert_array_equal(found, [[0.0, 0.0], [1.0, 1.0]])


def test_saved_by_orbax_and_read_from_nnx(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, fgo.keep_best(optax.sgd(0.1)), wrt=nnx.Param)
    kernels = []
    for report in (0.7, 0.4, 0.5):
        kernels.append(model.kernel[...])
        grads = nnx.grad(lambda model: model(jnp.ones(3)).sum())(model)
        optimizer.update(model, grads, validation_value=report)
    best = fgo.best_params(optimizer.opt_state, nnx.state(model, nnx.Param))
    nnx.update(model, best)
    same(model.kernel[...], kernels[1])
    tx = fgo.keep_best(optax.sgd(0.1))
    (params, state), _ = run(tx)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", tx.init(params))
    same(restored, state)


def test_under_a_mask_the_best_are_those_of_its_own_part():
    for wrap in (
        lambda tx: optax.masked(tx, {"w": True, "b": False}),
        lambda tx: optax.partition({"a": tx, "b": optax.sgd(0.1)}, {"w": "a", "b": "b"}),
    ):
        tx = wrap(fgo.keep_best(optax.sgd(0.1)))
        _, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS, validation_value=0.5)
        last = jax.tree.map(jnp.zeros_like, PARAMS)
        same(fgo.best_params(state, last), {"w": PARAMS["w"], "b": last["b"]})


@pytest.mark.parametrize(
    ("tx", "read"),
    [
        (fgo.average_weights(0.5), fgo.eval_params),
        (fgo.scale_by_primal_averaging(0.5, 0.5), fgo.eval_params),
        (fgo.keep_best(optax.sgd(0.1)), fgo.best_params),
    ],
    ids=["average", "primal averaging", "best"],
)
def test_of_a_stack_of_runs_each_is_read_by_itself(tx, read):
    """As many runs as entries, so that a number for each run would broadcast over the entries."""
    params = jnp.arange(9.0).reshape(3, 3)
    state = jax.vmap(tx.init)(params)
    with pytest.raises(ValueError, match=rf"several runs: call jax\.vmap\(fgo\.{read.__name__}\)"):
        read(state, params)
    same(jax.vmap(read)(state, params), params)


def test_mistakes_are_named():
    tx = fgo.keep_best(optax.sgd(0.1))
    state = tx.init(PARAMS)
    for arguments, extras in (((), {"validation_value": 1.0}), ((PARAMS,), {})):
        with pytest.raises(TypeError, match="with NaN where none was measured"):
            tx.update(PARAMS, state, *arguments, **extras)
    with pytest.raises(ValueError, match="validation_value has the shape"):
        tx.update(PARAMS, state, PARAMS, validation_value=jnp.ones(2))
    with pytest.raises(ValueError, match="eval_fn must be a function"):
        fgo.keep_best(optax.sgd(0.1), 3)
    with pytest.raises(ValueError, match=r"holds 0 of fgo\.keep_best, not one"):
        fgo.best_params(optax.sgd(0.1).init(PARAMS), PARAMS)


def test_patience_is_that_of_the_flag():
    """The trigger of execution alone, as the default and as a run of phases get it."""
    signal = fgo.triggers.Signal(jnp.float32(1.0), jnp.float32(NAN), jnp.asarray(True))
    seen = fgo.triggers.Observation({"validation": signal}, jnp.int32(9), jnp.int32(9))
    for patience in (1, 3):
        trigger = fgo.triggers.defaults(patience=patience)["execution"]
        state, held = trigger.init(), []
        for _ in range(4):
            verdict, state = jax.jit(trigger.update)(seen, state)
            held.append(int(verdict) == 1)
        assert held.index(True) == patience  # the first report is an improvement
    with pytest.raises(ValueError, match="patience must be an integer >= 1"):
        fgo.triggers.defaults(patience=0)


def test_after_a_restart_old_values_do_not_compete():
    tx = fgo.keep_best(fgo.target_acquisition(0.1, transform=optax.identity()))
    params = jnp.float32(1.0)
    _, state = tx.update(params, tx.init(params), params, validation_value=0.1)
    state, params = fgo.restart(state), jnp.float32(5.0)
    assert float(fgo.best_params(state, params)) == 5.0  # nothing is reported yet
    _, state = tx.update(params, state, params, validation_value=0.9)
    assert float(fgo.best_params(state, jnp.float32(6.0))) == 5.0
    assert float(optax.tree.get(state, "best_validation")) == pytest.approx(0.9)
    assert int(optax.tree.get(state, "best_step")) == 0
