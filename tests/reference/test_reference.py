"""The reference of the API: pdoc writes it without a warning, and it says what docstrings say."""

import html
import inspect
import re
from pathlib import Path

import pytest

import fgo_jax
from fgo_jax.__main__ import everything
from tests.reference.__main__ import write

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Page by name of its module; a warning would be an error, as everywhere in the tests."""
    folder = tmp_path_factory.mktemp("api")
    write(folder)
    paths = [path for path in folder.rglob("*.html") if path.name != "index.html"]
    return {
        ".".join(path.relative_to(folder).with_suffix("").parts): path.read_text() for path in paths
    }


def test_every_public_name_has_its_place(pages):
    for name, item in everything("fgo_jax"):
        if inspect.ismodule(item):
            assert item.__name__ in pages, name
            continue
        module, _, short = name.rpartition(".")
        parent = dict(everything("fgo_jax")).get(module, fgo_jax)
        assert f'id="{short}"' in pages[parent.__name__], name


def test_pages_are_of_public_modules_only(pages):
    modules = [item for _, item in everything("fgo_jax") if inspect.ismodule(item)]
    assert set(pages) == {"fgo_jax", *(module.__name__ for module in modules)}


def test_no_markup_is_left_and_no_formula_is_broken(pages):
    sources = "".join(path.read_text() for path in (ROOT / "fgo_jax").rglob("*.py"))
    known = set(re.findall(r"\\[a-zA-Z]+", sources))
    formulas = 0
    for name, page in pages.items():
        text = html.unescape(re.sub(r"<[^>]+>", "", page))
        assert not re.search(r":(func|class|mod|math|meth):`|\.\. math::", text), name
        for formula in re.findall(r"\\\(.*?\\\)|\$\$.*?\$\$", page, re.DOTALL):
            formulas += 1
            # pdoc joins the lines of a formula without a space, and Markdown may read its signs.
            glued = [word for word in re.findall(r"\\[a-zA-Z]+", formula) if word not in known]
            assert not glued, f"{name}: {glued}: begin a line with the command, not end one"
            assert not re.search(r"<(em|strong|code|a)\b", formula), f"{name}: {formula}"
    assert formulas > 20


def test_formulas_hold_no_sign_that_markdown_takes_away():
    for path in (ROOT / "fgo_jax").rglob("*.py"):
        for formula in re.findall(
            r":math:`.*?`|\.\. math::.*?\n\s*\n", path.read_text(), re.DOTALL
        ):
            assert not re.search(r"\\[\\{}]", formula), f"{path.name}: write \\lbrace: {formula}"
