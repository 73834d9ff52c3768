"""What is installed: the contents of wheel and source archive, and what an import costs."""

import importlib.metadata
import json
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

import fgo_jax

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
_BUILD = """
from setuptools import build_meta
build_meta.build_wheel("dist")
build_meta.build_sdist("dist")
"""
_IMPORT = """
import json, sys, time
import jax, jax.numpy, numpy, optax
before, begin = set(sys.modules), time.process_time()
import fgo_jax
print(json.dumps([time.process_time() - begin, sorted(set(sys.modules) - before)]))
"""


def python(code, where):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=where, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def sources():
    """The package's files in the checkout."""
    paths = [*(ROOT / "fgo_jax").rglob("*.py"), ROOT / "fgo_jax" / "py.typed"]
    return {path.relative_to(ROOT).as_posix() for path in paths}


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    if int(importlib.metadata.version("setuptools").split(".")[0]) < 77:
        pytest.skip("pyproject.toml is of a form that setuptools reads from version 77 on")
    tree = tmp_path_factory.mktemp("checkout")  # a build writes beside what it reads
    shutil.copytree(ROOT / "fgo_jax", tree / "fgo_jax", ignore=shutil.ignore_patterns("*.pyc"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    python(_BUILD, tree)
    return tree / "dist"


def test_the_wheel_holds_the_package_and_nothing_else(dist):
    (path,) = dist.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        (metadata,) = [name for name in names if name.endswith("/METADATA")]
        said = message_from_string(wheel.read(metadata).decode())
    assert {name for name in names if ".dist-info/" not in name} == sources()
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert said["Version"] == fgo_jax.__version__
    needed = [line for line in said.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert {line.split(">")[0] for line in needed} == {"jax", "numpy", "optax"}
    assert said.get_payload().startswith("# fgo_jax")


def test_the_source_archive_builds_the_same(dist):
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames() if "/" in name}
    files = {name for name in names if name.startswith("fgo_jax/") and "." in name}
    assert files == sources()
    assert {"pyproject.toml", "README.md", "LICENSE", "PKG-INFO"} <= names


def test_an_import_is_quick_and_brings_no_optional_package():
    """Beyond JAX and optax it takes a fifth of a second; a busy machine is given three tries."""
    for _ in range(3):
        seconds, modules = json.loads(python(_IMPORT, ROOT))
        assert any(name.startswith("fgo_jax.") for name in modules)
        # No other package: Flax, matplotlib and the like wait for their first use.
        assert {name.partition(".")[0] for name in modules} <= {"fgo_jax", "jax", "optax"}
        if seconds < 0.3:
            return
    raise AssertionError(f"import fgo_jax takes {seconds:.2f} s")


def test_the_extras_name_what_is_imported_where_it_is_used():
    assert {name.split(">")[0] for name in PROJECT["dependencies"]} == {"jax", "numpy", "optax"}
    assert {"flax", "plot", "notebooks", "test"} <= set(PROJECT["optional-dependencies"])
