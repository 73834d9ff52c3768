"""Executes the notebooks: `python -m tests.notebooks [NAME ...]` writes their outputs anew."""

import base64
import contextlib
import io
import os
import re
import sys
from pathlib import Path

import nbformat
import numpy as np
from nbclient import NotebookClient
from PIL import Image

import tests.conftest  # noqa: F401  (settings of the tests, for the kernels)

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# Cells with this tag train for so long that rounding, which differs between machines, shows in
# their numbers. Of these only the words are compared, and pictures twice as loosely.
VARIES = "varies"
# Pictures are compared on so many cells: curves may move a little, panels and names may not.
GRID, APART = (48, 48), 0.02
_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")


# What an earlier notebook has left in the process, apart from what it has imported and compiled.
_AFRESH = """
import os
import matplotlib.pyplot as plt
plt.close("all")
plt.rcdefaults()
os.chdir({folder!r})
get_ipython().reset()
"""


@contextlib.contextmanager
def kernel():
    """Yields a function that runs a notebook from top to bottom, as one Python after another would.

    A process imports JAX and all that is drawn with only once. In each a notebook starts without
    names, where Jupyter opens it: in its own folder.
    """
    quickly = "--IPKernelApp.exec_lines=['from tests import quick', 'quick.build()']"
    client = NotebookClient(
        nbformat.v4.new_notebook(), timeout=300, record_timing=False, extra_arguments=[quickly]
    )

    def run(path):
        afresh = nbformat.v4.new_code_cell(_AFRESH.format(folder=str(path.parent)))
        client.nb = nbformat.v4.new_notebook(cells=[afresh])
        client.execute_cell(afresh, 0, store_history=False)
        client.nb = notebook = nbformat.read(path, as_version=4)
        for number, cell in enumerate(notebook.cells):
            client.execute_cell(cell, number)
        notebook.metadata.language_info = {"name": "python"}
        return notebook

    with client.setup_kernel(env=os.environ | {"PYTHONPATH": str(ROOT)}):
        yield run


def executed(path):
    """The notebook run in a process of its own."""
    with kernel() as run:
        return run(path)


def outputs(notebook):
    """Of each code cell: (its tags, its text, its pictures)."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            texts = [o.get("text", o.get("data", {}).get("text/plain", "")) for o in cell.outputs]
            pictures = [o.get("data", {}).get("image/png") for o in cell.outputs]
            texts = [t for t, picture in zip(texts, pictures, strict=True) if not picture]
            drawn = [picture for picture in pictures if picture]
            found.append((cell.metadata.get("tags", []), "".join(texts), drawn))
    return found


def differences(old, new, relative=0.1, absolute=0.02):
    """What a reader would notice: other words, other pictures, numbers that are far off."""
    found = []
    for (tags, text, drawn), (_, now, drawn_now) in zip(outputs(old), outputs(new), strict=True):
        if len(drawn) != len(drawn_now):
            found.append(f"{len(drawn_now)} pictures, not {len(drawn)}")
        elif any(
            apart(*pair) > APART * (1 + (VARIES in tags))
            for pair in zip(drawn, drawn_now, strict=True)
        ):
            found.append("another picture")
        # Columns are as wide as their numbers.
        words, words_now = (" ".join(_NUMBER.sub("#", each).split()) for each in (text, now))
        if words != words_now:
            found.append(f"{words_now!r}, not {words!r}")
        elif VARIES not in tags:
            pairs = zip(*(_NUMBER.findall(each) for each in (text, now)), strict=True)
            for a, b in ([float(each.replace(",", "")) for each in pair] for pair in pairs):
                if abs(a - b) > max(relative * max(abs(a), abs(b)), absolute):
                    found.append(f"{b:g}, not {a:g}")
    return found


def apart(picture, other):
    """How far two PNGs are apart from afar: the mean over a coarse grid, as a share of black."""
    images = [Image.open(io.BytesIO(base64.b64decode(each))) for each in (picture, other)]
    grids = [np.asarray(image.convert("L").resize(GRID, Image.Resampling.BOX), float)
             for image in images]  # fmt: skip
    return np.mean(np.abs(grids[0] - grids[1])) / 255


def small(picture):
    """A PNG of the same picture with a palette, about a third as large."""
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    buffer = io.BytesIO()
    image.quantize(64, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(
        buffer, "PNG", optimize=True
    )
    return base64.b64encode(buffer.getvalue()).decode()


def main(names):
    for path in NOTEBOOKS:
        if names and path.stem not in names:
            continue
        notebook = executed(path)
        print(*differences(nbformat.read(path, as_version=4), notebook), sep="\n")
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                if "image/png" in output.get("data", {}):
                    output.data["image/png"] = small(output.data["image/png"])
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
