"""Prints every public name with one line on what it is: `python -m fgo_jax`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import fgo_jax


def public_names(module: ModuleType, prefix: str) -> Iterator[tuple[str, Any]]:
    """The names in a module's `__all__`, and in those of the modules among them."""
    for name in module.__all__:
        item = getattr(module, name)
        yield f"{prefix}.{name}", item
        if inspect.ismodule(item):
            yield from public_names(item, f"{prefix}.{name}")


def main() -> None:
    for name, item in public_names(fgo_jax, "fgo"):
        documented = inspect.ismodule(item) or callable(item)
        line = (inspect.getdoc(item) or "").partition("\n")[0] if documented else ""
        print(f"{name}  {line}".rstrip())


if __name__ == "__main__":
    main()
