"""Every public name says what it does, what it takes and returns, with an example and a source."""

import dataclasses
import inspect

import pytest

import fgo_jax as fgo
import fgo_jax.linalg
from fgo_jax.__main__ import everything, main, public_names


def lacks(item):
    """The parts that the docstring of a function or class does not have."""
    text = inspect.getdoc(item) or ""
    needed = [">>>", "Source:"]
    if inspect.isclass(item):
        if dataclasses.is_dataclass(item) or hasattr(item, "_fields"):
            needed.append("Attributes:")
    else:
        needed.append("Returns:")
        parameters = [name for name in inspect.signature(item).parameters if name != "self"]
        if parameters:
            needed += ["Args:", "Raises:"]
    text = text.replace("Sources:", "Source:")
    return [part for part in needed if part not in text]


def documented():
    """Public functions and classes, and the public methods of the classes, by their names."""
    items = dict(everything("fgo"))
    items |= public_names(fgo_jax.linalg, "fgo.linalg")
    for name, item in items.items():
        if not (inspect.isfunction(item) or inspect.isclass(item)):
            continue  # a module or a constant
        if item.__module__.startswith("fgo_jax"):
            yield name, item
            for method, function in vars(item).items() if inspect.isclass(item) else ():
                field = method in getattr(item, "__dataclass_fields__", ())
                made = field or getattr(function, "__module__", "").split(".")[0] != "fgo_jax"
                if inspect.isfunction(function) and not (made or method.startswith("_")):
                    yield f"{name}.{method}", function


def test_every_public_name_is_documented():
    missing = {name: lacks(item) for name, item in documented()}
    lines = [f"{name} lacks {', '.join(parts)}" for name, parts in missing.items() if parts]
    assert not lines, "\n" + "\n".join(lines)


def test_every_name_in_all_exists_once():
    for module in [fgo, *(item for _, item in everything("fgo") if inspect.ismodule(item))]:
        assert len(set(module.__all__)) == len(module.__all__)
        assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize("part", [">>>", "Source:", "Args:", "Returns:", "Raises:"])
def test_the_check_sees_a_part_that_is_not_there(part):
    def documented(argument):
        return argument

    documented.__doc__ = "One line.\n\nArgs: Returns: Raises: Example: >>> Source:"
    assert not lacks(documented)
    documented.__doc__ = documented.__doc__.replace(part, "")
    assert lacks(documented) == [part]


def test_the_command_lists_every_public_name(capsys):
    main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [name for name, _ in everything("fgo")]
    line = "fgo.triggers.after  Holds once the phase has made `steps` updates, so it makes one more"
    assert f"{line}." in lines
