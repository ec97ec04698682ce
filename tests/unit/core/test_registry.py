"""Names of algorithms and tasks: short names, `module:Class`, and messages for wrong names."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path

import pytest

from raysim.core.errors import ConfigError
from raysim.core.registry import (
    GROUPS,
    algorithm_class,
    algorithm_groups,
    algorithms,
    declared_algorithm_fields,
    import_by_name,
    name_of,
    task_class,
    tasks,
)
from tests.support.paths import ROOT

FOLDER = ROOT / "algorithms"


MODULE = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Complete:
    def init(self, task): ...
    def round(self, fleet, state): ...
    def predictor(self, site, state): ...

@dataclass(frozen=True)
class Incomplete:
    def init(self, task): ...

class Subclass(Complete): ...

class Undecorated(Complete):
    mu: float = 0.1

@dataclass
class Mutable:
    init = round = predictor = lambda *_: None

class Plain:
    init = round = predictor = lambda *_: None

number = 5
"""


def test_every_module_of_algorithms_is_an_algorithm() -> None:
    assert set(algorithms()) == {path.stem for path in FOLDER.glob("*.py")} - {"__init__"}
    assert {"fedavg", "fedprox", "localonly", "centralized"} <= set(algorithms())
    assert all(line.endswith(".") or ":" in line for line in algorithms().values())


def test_every_algorithm_has_one_group() -> None:
    groups = algorithm_groups()
    assert tuple(groups) == GROUPS
    assert sorted(name for names in groups.values() for name in names) == sorted(algorithms())
    assert groups["references"] == ["centralized", "localonly"]
    assert {"fedavg", "scaffold"} <= set(groups["global"])


def test_tasks_are_those_that_can_be_built() -> None:
    assert {"synthetic", "segmentation"} <= set(tasks())
    assert "names" not in tasks()


@pytest.mark.parametrize("name", sorted(algorithms()))
def test_the_short_name_of_an_algorithm_is_the_name_of_its_class(name: str) -> None:
    cls = algorithm_class(name)
    assert cls.__name__.lower() == name.replace("_", "")
    assert name_of(cls) == name
    assert algorithm_class(f"algorithms.{name}:{cls.__name__}") is cls


@pytest.mark.parametrize("name", sorted(algorithms()))
def test_the_fields_of_an_algorithm_are_known_without_its_import(name: str) -> None:
    assert sorted(declared_algorithm_fields(name)) == sorted(f.name for f in fields(algorithm_class(name)) if f.init)


def test_the_short_name_of_a_task_is_the_name_of_its_class() -> None:
    assert name_of(task_class("synthetic")) == "synthetic"


def test_a_user_defined_algorithm_is_found_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_for_registry.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    cls = algorithm_class("own_for_registry:Complete")
    assert name_of(cls) == "own_for_registry:Complete"
    assert algorithm_class("own_for_registry:Subclass").__name__ == "Subclass"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nowhere:Complete",
            "algorithm 'nowhere:Complete' cannot be imported: ModuleNotFoundError: No module named 'nowhere'",
        ),
        (":Complete", "cannot be imported: ValueError"),
        ("own_wrong:Other", "the module own_wrong has no Other"),
        ("own_wrong:", "the module own_wrong has no "),
        ("own_wrong:Incomplete", "has no round and no predictor: expected the methods init, round, predictor"),
        ("own_wrong:number", "is a int: expected a frozen dataclass"),
        ("own_wrong:Undecorated", "write @dataclass(frozen=True, kw_only=True) above class Undecorated"),
        ("own_wrong:Plain", "write @dataclass(frozen=True, kw_only=True) above class Plain"),
        ("own_wrong:Mutable", "is not frozen, so a method could change its fields; write @dataclass(frozen=True"),
        ("own_broken:Complete", "cannot be imported: SyntaxError"),
        ("own_failing:Complete", "cannot be imported: ZeroDivisionError: division by zero"),
        ("FedAvgg", "(did you mean 'fedavg'?)"),
    ],
)
def test_the_reason_is_given_for_a_class_that_is_not_an_algorithm(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, text in (("own_wrong", MODULE), ("own_broken", "def"), ("own_failing", "1 / 0")):
        (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError) as caught:
        algorithm_class(name)
    assert message in str(caught.value)


def test_a_file_of_the_working_directory_does_not_replace_an_installed_module(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("pyclbr", "my_own_module"):
        (tmp_path / f"{name}.py").write_text("HERE = True\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.delitem(sys.modules, "pyclbr", raising=False)
    assert import_by_name("my_own_module:HERE")
    assert not hasattr(import_by_name("pyclbr"), "HERE")
