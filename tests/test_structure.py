"""The structure: rooms and the direction of imports, sizes of files, what benchmarks may use."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import fgo_jax as fgo
from fgo_jax.controller.update import update_step

ROOT = Path(__file__).parent.parent
# Every room at the top of the package, from the ground floor up: imports only go down.
FLOORS = (
    ("_checks",),
    ("linalg",),
    ("curvature", "smoothing"),
    ("precondition", "triggers"),
    ("probes",),
    ("phases",),
    ("controller",),
    ("protocol", "steering", "analysis"),
    ("integrations",),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
ENTRANCES = {"__init__", "__main__"}


def sources(package):
    return sorted((ROOT / package).rglob("*.py"))


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path):
    """(module, name or None) for every import of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)


def edges():
    """From every module of the package to the modules that it imports."""
    modules = {module_of(path): path for path in sources("fgo_jax")}
    graph = {name: set() for name in modules}
    for name, path in modules.items():
        for module, attribute in imports_of(path):
            target = f"{module}.{attribute}" if f"{module}.{attribute}" in modules else module
            if target in modules and target != name:
                graph[name].add(target)
    return graph


def test_there_are_at_most_14_rooms_and_each_has_a_floor():
    rooms = {p.stem for p in (ROOT / "fgo_jax").iterdir() if p.suffix == ".py" or p.is_dir()}
    rooms -= {"__pycache__", *ENTRANCES}
    assert rooms == set(FLOOR_OF)
    assert len(rooms) <= 14


def test_no_import_goes_up():
    wrong = []
    for name, targets in edges().items():
        for target in targets:
            a, b = (f"{module}.".split(".")[1] for module in (name, target))
            inside = a in FLOOR_OF and b in FLOOR_OF and a != b
            if inside and FLOOR_OF[a] <= FLOOR_OF[b]:
                wrong.append(f"{name} imports {target}")
    assert not wrong


def test_modules_import_in_no_circle():
    # The entrance gathers names; nothing but __main__ may go through it.
    graph = {name: targets - {"fgo_jax"} for name, targets in edges().items()}
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            path.append(name)
            for target in graph[name]:
                visit(target)
            done.add(path.pop())

    for name in graph:
        visit(name)


@pytest.mark.parametrize("package", ["fgo_jax", "benchmarks"])
def test_no_file_is_longer_than_300_lines(package):
    sizes = {str(p): len(p.read_text().splitlines()) for p in sources(package)}
    assert not {name: size for name, size in sizes.items() if size > 300}


def test_benchmarks_stay_small():
    assert sum(len(p.read_text().splitlines()) for p in sources("benchmarks")) <= 7700


def test_a_step_fits_on_a_page():
    assert len(inspect.getsource(update_step).splitlines()) <= 40


def test_the_front_door_has_at_most_16_arguments():
    assert len(inspect.signature(fgo.target_acquisition).parameters) <= 16


def test_benchmarks_and_notebooks_use_public_names_only():
    wrong = []
    for path in sources("benchmarks"):
        for module, name in imports_of(path):
            if not module.startswith("fgo_jax") or (module == "fgo_jax" and name is None):
                continue
            public = getattr(importlib.import_module(module), "__all__", ())
            if name not in public:
                wrong.append(f"{path.name}: from {module} import {name}")
    assert not wrong
