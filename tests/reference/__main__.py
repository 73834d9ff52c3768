"""Writes the reference of the API as web pages: `python -m tests.reference [FOLDER]`.

The folder is `api/` by default.
It needs pdoc, which comes with `pip install -e ".[test]"`. The formulas are drawn by MathJax, which
the browser loads from its own server.
"""

from __future__ import annotations

import inspect
import sys
import typing
import warnings
from pathlib import Path

import pdoc
import pdoc.render

from fgo_jax.__main__ import everything


def write(folder: Path) -> None:
    """A page for each public module; warnings of pdoc are errors where the caller says so."""
    public = dict(everything("fgo_jax"))
    modules = {name: item for name, item in public.items() if inspect.ismodule(item)}
    for item in public.values():
        # The annotations of a NamedTuple's constructor do not say which module they are from.
        if hasattr(item, "_fields"):
            item.__new__.__annotations__ = typing.get_type_hints(item)
    # pdoc finds the public modules that lie where their public name says, inside of public ones.
    inside = {name for name in modules if name.rpartition(".")[0] in ("fgo_jax", *modules)}
    names = {name: module.__name__ for name, module in modules.items()}
    elsewhere = [at for name, at in names.items() if at != name or name not in inside]
    # Otherwise a module such as `probes/lanczos.py` gets a page beside the function in it.
    public_only = "|".join(["fgo_jax", *(item.__name__ for item in modules.values())])
    others = rf"!(?!({public_only})$)".replace(".", r"\.")
    pdoc.render.configure(docformat="google", math=True, show_source=False, search=True)
    with warnings.catch_warnings():
        # Flax annotates its TrainState with a type of optax's that refers to itself.
        warnings.filterwarnings("ignore", r"Error parsing type annotation .*ArrayTree")
        pdoc.pdoc("fgo_jax", *elsewhere, others, output_directory=folder)


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "api")
    write(target)
    print(f"open {target / 'fgo_jax.html'}")
