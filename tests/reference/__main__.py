"""Writes the reference of the API as web pages: `python -m tests.reference [FOLDER]`.

The folder is `api/` by default.
It needs pdoc, which comes with `pip install -e ".[test]"`. The formulas are drawn by MathJax, which
the browser loads from its own server.
"""

from __future__ import annotations

import inspect
import sys
import typing
from pathlib import Path

import pdoc
import pdoc.render

import fgo_jax
from fgo_jax.__main__ import public_names


def write(folder: Path) -> None:
    """A page for each public module; warnings of pdoc are errors where the caller says so."""
    public = dict(public_names(fgo_jax, "fgo_jax"))
    modules = {name: item for name, item in public.items() if inspect.ismodule(item)}
    for item in public.values():
        # The annotations of a NamedTuple's constructor do not say which module they are from.
        if hasattr(item, "_fields"):
            item.__new__.__annotations__ = typing.get_type_hints(item)
    # pdoc finds the public modules that lie where their public name says.
    elsewhere = [item.__name__ for name, item in modules.items() if item.__name__ != name]
    # Otherwise a module such as `probes/lanczos.py` gets a page beside the function in it.
    public_only = "|".join(["fgo_jax", *(item.__name__ for item in modules.values())])
    others = rf"!(?!({public_only})$)".replace(".", r"\.")
    pdoc.render.configure(docformat="google", math=True, show_source=False, search=True)
    pdoc.pdoc("fgo_jax", *elsewhere, others, output_directory=folder)


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "api")
    write(target)
    print(f"open {target / 'fgo_jax.html'}")
