"""The shape of the code: imports go one way, files and functions stay readable, public names exist."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import raysim
from tests.support.paths import ROOT

ENGINE = sorted((ROOT / "raysim").rglob("*.py"))
ALGORITHMS = sorted((ROOT / "algorithms").glob("*.py"))

# A module imports only what stands before it. `data` and `tasks` are packages with an order of their own.
ORDER = (
    *(
        "_version",
        "errors",
        "allocator",
        "naming",
        "seeding",
        "chaos",
        "whole",
        "model",
        "twin",
        "types",
        "classifiers",
        "routing",
        "geometry",
        "encoders",
        "views",
        "tree",
        "adaptation",
        "batches",
        "training",
        "worker",
        "fleet",
    ),
    *(
        "rounds",
        "codec",
        "checkpoint",
        "log",
        "record",
        "data",
        "tasks",
        "registry",
        "pretraining",
        "fields",
        "loader",
        "config",
        "run",
        "folder",
        "node",
    ),
    *(
        "placement",
        "growth",
        "preflight",
        "join",
        "stand",
        "monitor",
        "client",
        "balance",
        "dispatch",
        "ray_fleet",
        "server",
        "room",
        "driver",
        "display",
    ),
    *("plots", "report", "checks", "census", "launch"),
    *("domains", "space", "space_files", "objectives", "plan", "trials", "books", "suggest", "troupe", "handover"),
    *("trial", "schedulers", "tracking"),
    *("leader", "tuning"),
    *("search_display", "seats", "rehearsal", "asking", "corners", "search_plots", "search_report", "searching"),
    *("watch", "parcel", "submit"),
    *("probe", "surroundings", "doctor", "listing", "arguments", "cli"),
)


def module(path: Path) -> str:
    return path.relative_to(ROOT / "raysim").parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Every module that the file imports, in functions too, but not for type checking alone."""
    for node in ast.walk(_without_type_checking(ast.parse(path.read_text()))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def _without_type_checking(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    return tree


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


@pytest.mark.parametrize("path", ENGINE, ids=names(ENGINE))
def test_the_engine_imports_no_algorithm_and_only_what_comes_before(path: Path) -> None:
    here, found = module(path), list(imported(path))
    assert not [name for name in found if name.split(".")[0] in ("algorithms", "search_spaces", "tests")]
    if here in ("__init__", "__main__"):
        return
    assert here in ORDER, f"where does {here} stand in ORDER?"
    inner = {name.split(".")[1] for name in found if name.startswith("raysim.")}
    allowed = {here, *ORDER[: ORDER.index(here)], "__version__"}
    assert inner <= allowed, f"{here} imports {inner - allowed}, which come after it"


@pytest.mark.parametrize("path", ALGORITHMS, ids=names(ALGORITHMS))
def test_an_algorithm_imports_raysim_and_little_else(path: Path) -> None:
    allowed = {"raysim", "torch", "numpy", "annotated_types", *sys.stdlib_module_names}
    assert {name.split(".")[0] for name in imported(path)} <= allowed


@pytest.mark.parametrize("path", ALGORITHMS, ids=names(ALGORITHMS))
def test_no_algorithm_knows_another(path: Path) -> None:
    assert not [name for name in imported(path) if name.startswith("algorithms")]


@pytest.mark.parametrize("path", ENGINE + ALGORITHMS, ids=names(ENGINE + ALGORITHMS))
def test_files_and_functions_stay_readable(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= (200 if path in ALGORITHMS else 300)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            first = node.body[1 if ast.get_docstring(node) and len(node.body) > 1 else 0]
            length = (node.end_lineno or 0) - first.lineno + 1
            assert length <= 50, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", ENGINE + ALGORITHMS, ids=names(ENGINE + ALGORITHMS))
def test_every_module_says_what_it_is(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert path.name == "_version.py" or not tree.body or ast.get_docstring(tree)


def test_public_names_exist_and_are_all() -> None:
    assert set(raysim.__all__) == {*raysim._MODULE, "__version__"}
    assert len(raysim.__all__) == len(set(raysim.__all__))
    for name, home in raysim._MODULE.items():
        assert getattr(raysim, name) is getattr(import_module(home), name)
    with pytest.raises(AttributeError, match="has no attribute 'federat'"):
        raysim.federat  # noqa: B018 - the look-up is the test


def test_no_public_name_is_also_a_module() -> None:
    # `from raysim import x` would give the module, once something had imported it.
    assert not set(raysim.__all__) & {module(path) for path in ENGINE}
