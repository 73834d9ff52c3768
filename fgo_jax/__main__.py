"""Prints every public name with one line on what it is: `python -m fgo_jax`."""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import fgo_jax

# Names without a docstring.
CONSTANTS = {
    "STATIC_ARGS": "The arguments of target_acquisition to name in optax.inject_hyperparams.",
    "Operator": "A curvature operator: `(params, batch) -> (vector -> vector)`.",
}


def public_names(module: ModuleType, prefix: str) -> Iterator[tuple[str, Any]]:
    """The names in a module's `__all__`, and recursively in its public modules."""
    for name in module.__all__:
        item = getattr(module, name)
        yield f"{prefix}.{name}", item
        if inspect.ismodule(item):
            yield from public_names(item, f"{prefix}.{name}")


def everything(prefix: str) -> Iterator[tuple[str, Any]]:
    """All public names; those of the integrations only where the other library is installed."""
    yield from public_names(fgo_jax, prefix)
    if importlib.util.find_spec("flax") is not None:
        name = "fgo_jax.integrations.flax"
        module = importlib.import_module(name)
        yield name, module
        yield from public_names(module, name)


def main() -> None:
    for name, item in everything("fgo"):
        own = inspect.ismodule(item) or inspect.isclass(item) or inspect.isfunction(item)
        text = inspect.getdoc(item) if own else CONSTANTS[name.rpartition(".")[2]]
        line = (text or "").partition("\n")[0].replace("``", "`")
        line = re.sub(r":\w+:`(?:fgo_jax\.)?([^`]*)`", r"\1", line)  # roles of Sphinx
        print(f"{name}  {line}".rstrip())


if __name__ == "__main__":
    main()
