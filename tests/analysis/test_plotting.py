"""Pictures show what the report says."""

import dataclasses
import sys

import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

import fgo_jax as fgo

matplotlib.use("Agg")

VALUES = jnp.r_[jnp.array([50.0, 20.0, -8.0]), jnp.linspace(0.1, 1.0, 27)]


@pytest.fixture(scope="module")
def report():
    params = {"a": jnp.zeros(10), "b": jnp.zeros(20)}

    def operator(params, batch):
        return lambda v: {"a": VALUES[:10] * v["a"], "b": VALUES[10:] * v["b"]}

    groups = fgo.probes.layer_groups(params)
    return fgo.spectrum(operator, params, 0, num_steps=12, num_starts=2, top=3, groups=groups)


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def test_outliers_are_marked_on_the_density(report):
    ax = fgo.plotting.spectral_density(report)
    lines = {line.get_label(): line for line in ax.get_lines()}
    np.testing.assert_allclose(
        lines["the 3 largest, each as high as one"].get_xdata(), [50.0, 20.0, -8.0], rtol=1e-4
    )
    curve = lines["density of all 30"]
    x, y = curve.get_xdata(), curve.get_ydata()
    for outlier in (50.0, 20.0, -8.0):  # one eigenvalue under a kernel of a tenth of a decade
        height = y[np.argmin(np.abs(x - outlier))]
        np.testing.assert_allclose(height, 1.0 / (0.1 * (2 * np.pi) ** 0.5), rtol=0.1)
    assert ax.get_xlabel() == "eigenvalue [loss / parameter$^2$]"
    assert ax.get_ylabel() == "eigenvalues per decade"
    assert ax.get_title() == "operator: 30 parameters, one batch"
    explained = [text.get_text() for text in ax.get_legend().get_texts()]
    assert "two standard errors" in explained
    assert "energy to the right (right scale)" in explained
    under, band = (area for area in ax.collections if area.get_alpha())
    assert band.get_hatch()  # not one more fill of the same colour
    assert under.get_alpha() < band.get_alpha()
    ax.figure.canvas.draw()  # tick labels and scales must be drawable


def test_layers_are_bars_with_the_stiffest_on_top(report):
    ax = fgo.plotting.layers(report)
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["b (20)", "a (10)"]
    lengths = [bar.get_width() for bar in ax.patches]
    np.testing.assert_allclose(lengths[:2], [1.0, 50.0], rtol=1e-3)  # top ones, then the means
    assert "by layer (PR: participation ratio)" in ax.get_title()
    assert "residual" in ax.get_legend().get_texts()[-1].get_text()
    ax.figure.canvas.draw()


def test_what_is_not_resolved_is_named_so_beside_its_bar(report):
    unknown = fgo.probes.Estimate(jnp.float32(23.718), jnp.float32(jnp.inf))
    nothing = fgo.probes.Estimate(jnp.float32(jnp.nan), jnp.float32(jnp.nan))
    layers = {
        name: dataclasses.replace(part, participation_ratio=ratio)
        for (name, part), ratio in zip(report.layers.items(), (unknown, nothing), strict=True)
    }
    ax = fgo.plotting.layers(dataclasses.replace(report, layers=layers))
    told = {text.get_text() for text in ax.texts}
    assert told == {"PR 23.72 (unresolved)", "PR not told from noise"}


def test_it_draws_into_given_axes(report):
    _, ax = plt.subplots()
    assert fgo.plotting.spectral_density(report, ax) is ax


def test_without_matplotlib_it_says_what_to_install(report, monkeypatch):
    with monkeypatch.context() as context:
        context.setitem(sys.modules, "matplotlib.pyplot", None)
        with pytest.raises(ImportError, match=r"pip install 'fgo_jax\[plot\]"):
            fgo.plotting.spectral_density(report)


def test_wrong_input_says_what_to_pass(report):
    with pytest.raises(ValueError, match=r"what fgo\.spectrum returns, got dict"):
        fgo.plotting.spectral_density({})
    plain = fgo.spectrum(
        lambda params, batch: lambda v: v, jnp.zeros(3), 0, num_steps=3, num_starts=2, top=1
    )
    with pytest.raises(ValueError, match="layer_groups"):
        fgo.plotting.layers(plain)
