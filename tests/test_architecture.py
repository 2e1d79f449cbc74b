"""The rooms stand on each other: imports only point down, importing is light, and what the registry names exists."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import anybatch
from anybatch.registry import METHODS, WORKLOADS

ROOT = Path(anybatch.__file__).parent
# from the ground up; rooms of one tuple stand side by side
FLOORS = (
    ("errors", "seeds", "machine_memory"),
    ("stats",),
    ("nn",),
    ("report",),
    ("workload", "registry"),
    ("decide",),
    ("workloads",),
    ("apply",),
    ("rl",),
    ("train",),
    ("probing",),
    ("cli",),
)
LEVELS = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
HEAVY = ("scipy", "plotly", "jinja2", "rich", "typer", "sklearn", "torchvision", "gymnasium", "numba")

SOURCES = [
    path
    for path in sorted(ROOT.rglob("*.py"))
    if path.relative_to(ROOT).parts not in (("__init__.py",), ("__main__.py",))
]


def imported_modules(source: str, package: str) -> Iterator[str]:
    """The full names of what a module imports; `from anybatch import decide` gives anybatch.decide."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            yield from ([f"{base}.{alias.name}" for alias in node.names] if base == "anybatch" else [base])


def upward_imports(source: str, path: str) -> list[str]:
    """What of `anybatch` a module may not import, its path being relative to the package."""
    parts = Path(path).with_suffix("").parts
    own = parts[0]
    package = ".".join(("anybatch", *parts[:-1]))
    wrong = []
    for name in imported_modules(source, package):
        if name.split(".")[0] != "anybatch":
            continue
        room = name.split(".")[1] if "." in name else None
        is_below = room in LEVELS and (room == own or LEVELS[room] < LEVELS[own])
        allowed = own == "cli" if room is None else is_below
        if not allowed:
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_point_down(path):
    relative = path.relative_to(ROOT).as_posix()
    assert relative.split("/")[0].removesuffix(".py") in LEVELS, "a new room needs its floor in this test"
    assert upward_imports(path.read_text(), relative) == []


@pytest.mark.parametrize(
    ("source", "path", "wrong"),
    [
        ("from anybatch.train.loop import train", "decide/x.py", ["anybatch.train.loop"]),
        ("from anybatch import probing", "train/x.py", ["anybatch.probing"]),
        ("from anybatch import Workload", "train/x.py", ["anybatch.Workload"]),
        ("import anybatch", "train/x.py", ["anybatch"]),
        ("from ..cli import main", "probing/x.py", ["anybatch.cli"]),
        ("def f():\n    import anybatch.probing.law", "workload.py", ["anybatch.probing.law"]),
        ("from anybatch.registry import METHODS", "workload.py", ["anybatch.registry"]),
        ("from anybatch.stats import Ranks\nimport torch\nfrom . import y", "decide/x.py", []),
    ],
)
def test_an_import_that_points_up_is_found(source, path, wrong):
    assert upward_imports(source, path) == wrong


def test_importing_the_package_loads_torch_and_numpy_alone():
    code = f"import sys, anybatch; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("card", METHODS, ids=lambda card: card.name)
def test_a_card_of_the_registry_says_where_its_method_is(card):
    module, _, name = card.where.rpartition(".")
    assert callable(getattr(importlib.import_module(module), name))
    assert card.stage in ("measure", "decide", "apply", "use")
    assert "\n" not in card.summary
    assert card.source


@pytest.mark.parametrize("entry", WORKLOADS.values(), ids=WORKLOADS)
def test_a_built_in_workload_of_the_registry_is_a_function(entry):
    module, _, name = entry.partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_every_module_can_be_imported_alone():
    names = [module.name for module in pkgutil.walk_packages([str(ROOT)], "anybatch.") if "__main__" not in module.name]
    assert len(names) > 20
    for name in names:
        importlib.import_module(name)


def test_what_the_package_promises_is_there():
    assert all(hasattr(anybatch, name) for name in anybatch.__all__)
