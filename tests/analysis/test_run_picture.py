"""The picture of a run shows what its telemetry says."""

import functools
import warnings

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text

import fgo_jax as fgo
from fgo_jax.analysis.plotting import canvas

matplotlib.use("Agg")
STEPS = 60
PHASES = ("acquisition", "reask", "execution")


@functools.cache
def telemetry():
    """Three phases within sixty steps, a step that is skipped, and a validation every ten."""
    low = fgo.triggers.below("loss", 0.5, patience=2)
    tx = fgo.target_acquisition(
        0.1,
        warmup_steps=8,
        transform=optax.scale_by_adam(),
        triggers={"acquisition": low, "reask": fgo.triggers.after(10)},
        handover_steps=4,
    )
    params = {"w": jnp.linspace(0.5, 1.0, 6)}

    def step(carry, number):
        params, state = carry
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), number), (6,))
        grads = jax.tree.map(lambda p: p + 0.3 * noise, params)
        grads = jax.tree.map(lambda g: jnp.where(number == 40, jnp.nan, g), grads)
        loss = 0.01 + jnp.sum(params["w"] ** 2) / 2
        validation = jnp.where(number % 10 == 9, loss + 0.1, jnp.nan)
        updates, state = tx.update(grads, state, params, value=loss, validation_value=validation)
        return (optax.apply_updates(params, updates), state), fgo.telemetry(state)

    start = params, tx.init(params)
    _, record = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(STEPS)))(start)
    return jax.tree.map(np.asarray, record)


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def words(figure):
    figure.canvas.draw()  # what cannot be drawn fails here
    texts = [text.get_text() for axis in figure.axes for text in axis.texts]
    return "\n".join([*texts, *(axis.get_ylabel() for axis in figure.axes)])


def labelled(figure, start):
    (axis,) = [axis for axis in figure.axes if axis.get_ylabel().startswith(start)]
    return axis


def test_it_shows_the_phases_the_curves_and_what_ended_each_phase():
    record = telemetry()
    figure = fgo.plotting.run(record, title="three phases")
    said = words(figure)
    begun = [int(record[f"started/{name}"][-1]) for name in ("reask", "execution")]
    assert 8 < begun[0] < begun[1] < STEPS - 1
    assert f"reask from {begun[0]}: its trigger held" in said
    assert f"execution from {begun[1]}: its trigger held" in said
    assert "acquisition: loss below 0.5" in said
    assert "execution: validation plateau" in said
    assert "1 step skipped" in figure.get_supxlabel()
    assert figure.get_suptitle() == "three phases"
    assert all("[" in axis.get_ylabel() or "phase" in axis.get_ylabel() for axis in figure.axes)
    loss = labelled(figure, "loss")
    lines = {line.get_label(): line for line in loss.get_lines()}
    np.testing.assert_array_equal(lines["training, as recorded"].get_ydata(), record["loss"])
    np.testing.assert_allclose(lines["validation"].get_xdata(), [10, 20, 30, 40, 49, 59])
    np.testing.assert_array_equal(lines["skipped"].get_xdata(), [40])
    assert loss.get_yscale() == "log"
    for axis in figure.axes:  # a line at each transition, in every panel
        at = [line.get_xdata()[0] for line in axis.get_lines() if len(set(line.get_xdata())) == 1]
        assert set(begun) <= set(at)
    assert figure.get_size_inches()[0] * figure.dpi == 800
    texts = [text for text in figure.findobj(Text) if text.get_text()]
    assert all(text.get_fontsize() >= 9 for text in texts)
    names = [text for text in figure.axes[0].texts if text.get_text().startswith(PHASES)]
    heights = [text.xyann[1] for text in names]
    assert len(heights) == 3
    assert heights == sorted(heights)  # in the order of the run


def ends(figure):
    """What each condition says at the end of its phase, by the marks."""
    axis = labelled(figure, "conditions")
    marks = [line for line in axis.get_lines() if line.get_marker() == "D"]
    return {(float(m.get_xdata()[0]), m.get_color()) for m in marks}


def test_a_record_of_every_few_steps_or_a_list_says_the_same():
    record = telemetry()
    whole = fgo.plotting.run(record)
    rows = [{name: values[i] for name, values in record.items()} for i in range(STEPS)]
    listed = fgo.plotting.run(rows)
    assert words(listed) == words(whole)
    few = fgo.plotting.run(rows[::7])
    assert words(few) == words(whole)  # transitions lie between what was recorded
    begun = {float(record[f"started/{name}"][-1]) for name in ("reask", "execution")}
    for figure in (whole, few):
        at = [(step, color) for step, color in ends(figure) if step in begun]
        assert {step for step, _ in at} == begun
        assert {color for _, color in at} == {"#0072B2"}  # holds


def test_phases_are_named_by_when_they_began_and_may_come_again():
    """The order of the names in a record is alphabetical, which is not that of the phases."""
    record = {name: np.array(values) for name, values in telemetry().items()}
    again = {name: np.append(values, values[:20]) for name, values in record.items()}
    said = words(fgo.plotting.run(again))
    assert f"acquisition from {int(record['total_step'][-1])}: restart" in said
    forced = {name: np.array(values) for name, values in record.items()}
    forced["phase"][50:], forced["started/acquisition"][50:] = 0, 50
    forced["cause/acquisition"][50:] = 3
    assert "acquisition from 50: by hand" in words(fgo.plotting.run(forced))


def test_the_picture_grows_with_the_names_of_many_phases():
    steps = np.arange(1, 81)
    record = {"total_step": steps, "phase": (steps - 1) // 2, "learning_rate": np.ones(80)}
    for phase in range(40):
        record[f"started/p{phase}"] = np.where(steps > 2 * phase, 2 * phase, -1)
        record[f"cause/p{phase}"] = np.where(steps > 2 * phase, 1, 0)
    figure = fgo.plotting.run(record)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns where the axes have no room left
        assert "p39 from 78: its trigger held" in words(figure)
    (axis,) = figure.axes
    assert axis.get_window_extent().height > 50


def test_a_run_without_loss_and_one_long_phase():
    record = {name: values for name, values in telemetry().items()}
    record = {k: v[:8] for k, v in record.items() if k not in ("loss", "validation")}
    said = words(fgo.plotting.run(record))
    assert "loss\n" not in said
    assert "from" not in said


def test_early_transitions_get_a_logarithmic_axis_of_steps():
    record = telemetry()
    longer = {
        name: np.append(values, np.repeat(values[-1], 4000)) for name, values in record.items()
    }
    longer["total_step"][STEPS:] += np.arange(1, 4001)
    figure = fgo.plotting.run(longer)
    assert {axis.get_xscale() for axis in figure.axes} == {"log"}
    assert {axis.get_xscale() for axis in fgo.plotting.run(record).axes} == {"linear"}
    words(figure)


@pytest.mark.parametrize("high", [1.02, 1.3, 2.0, 7.5, 30.0, 1e4])
def test_a_logarithmic_axis_has_three_numbers_or_more(high):
    for low in (1.0, 0.037, 480.0):
        found = canvas.round_numbers(low, low * high)
        assert len(found) >= 3
        assert np.all((np.diff(found) > 0) & (found[0] >= low) & (found[-1] <= low * high))


def test_a_signal_that_a_condition_reads_is_drawn():
    record = dict(telemetry())
    record["noise_scale/Dense_0"] = np.linspace(1.0, 90.0, STEPS)
    record["condition/reask/not_noise_scale/Dense_0_below"] = np.ones(STEPS)
    said = words(fgo.plotting.run(record))
    assert "noise scale/Dense 0" in said.splitlines()
    assert "reask: not noise scale/Dense 0 below" in said


def test_signals_of_choice():
    figure = fgo.plotting.run(telemetry(), signals=["cosine", "slow_share"])
    said = words(figure)
    assert "with gradient" in said
    assert "slow momentum" in said
    assert "noise dimension" not in said
    with pytest.raises(ValueError, match="no 'sharpness': pass signals= among"):
        fgo.plotting.run(telemetry(), signals=["sharpness"])
    with pytest.raises(ValueError, match=r"a list of names, such as \['loss'\]"):
        fgo.plotting.run(telemetry(), signals="loss")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: {k: v[0] for k, v in r.items()}, "two steps or more: return fgo.telemetry"),
        (lambda r: {k: np.stack([v, v], 1) for k, v in r.items()}, "of several runs pass one"),
        (lambda r: {f"[0]/{k}": v for k, v in r.items()}, "of several optimizers"),
        (lambda r: {"loss": r["loss"]}, "lacks learning_rate, phase, total_step"),
        (lambda r: [], "got list"),
        (lambda r: [r, r, {k: v for k, v in r.items() if k != "loss"}], "record 2 .* 'loss': pass"),
        (lambda r: [r, r | {"accuracy": r["loss"]}], "record 1 .* both have 'accuracy'"),
    ],
)
def test_wrong_input_says_what_to_pass(change, message):
    with pytest.raises(ValueError, match=message):
        fgo.plotting.run(change(telemetry()))


def test_the_picture_has_few_hues_that_all_eyes_tell_apart():
    """Simulated deuteranopia (Viénot et al., 1999) keeps the verdicts' colours apart."""
    figure = fgo.plotting.run(telemetry())
    legend = labelled(figure, "conditions").get_legend()
    colors = np.array([to_rgb(p.get_facecolor()) for p in legend.get_patches()])
    linear = colors**2.2
    seen = (
        linear @ np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]).T
    )
    seen = np.clip(seen, 0, 1) ** (1 / 2.2)
    gaps = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
    assert np.min(gaps[np.triu_indices(3, 1)]) > 0.25


def test_a_share_has_a_linear_axis_however_small_it_becomes():
    record = {
        "total_step": np.arange(1, 9),
        "phase": np.zeros(8),
        "learning_rate": np.full(8, 0.1),
        "agreement": np.geomspace(0.5, 0.01, 8),
    }
    axis = labelled(fgo.plotting.run(record), "agreement")
    assert axis.get_yscale() == "linear"
    assert axis.get_ylim()[0] < 0.0 < 1.0 < axis.get_ylim()[1]
