"""Names: short ones are files, others are found anywhere, and wrong ones are explained."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from raysim.core.errors import ConfigError
from raysim.core.registry import algorithm_class, algorithms, name_of, task_class, tasks
from tests.support.paths import ROOT

FOLDER = ROOT / "algorithms"


MINE = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Mine:
    def init(self, task): ...
    def round(self, fleet, state): ...
    def predictor(self, site, state): ...

@dataclass(frozen=True)
class Half:
    def init(self, task): ...

class Plain(Mine): ...
number = 5
"""


def test_every_file_of_algorithms_is_one() -> None:
    assert set(algorithms()) == {path.stem for path in FOLDER.glob("*.py")} - {"__init__"}
    assert {"fedavg", "fedprox", "localonly", "centralized"} <= set(algorithms())
    assert all(line.endswith(".") or ":" in line for line in algorithms().values())


def test_tasks_are_those_that_can_be_built() -> None:
    assert {"synthetic", "segmentation"} <= set(tasks())
    assert "names" not in tasks()


@pytest.mark.parametrize("name", sorted(algorithms()))
def test_an_algorithm_is_found_by_its_short_name_and_back(name: str) -> None:
    cls = algorithm_class(name)
    assert cls.__name__.lower() == name.replace("_", "")
    assert name_of(cls) == name
    assert algorithm_class(f"algorithms.{name}:{cls.__name__}") is cls


def test_a_task_is_found_by_its_short_name_and_back() -> None:
    assert name_of(task_class("synthetic")) == "synthetic"


def test_ones_own_is_found_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_for_registry.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    cls = algorithm_class("own_for_registry:Mine")
    assert name_of(cls) == "own_for_registry:Mine"
    assert algorithm_class("own_for_registry:Plain").__name__ == "Plain"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:Mine", "algorithm 'nowhere:Mine' cannot be imported: ModuleNotFoundError: No module named 'nowhere'"),
        (":Mine", "cannot be imported: ValueError"),
        ("own_wrong:Other", "the module own_wrong has no Other"),
        ("own_wrong:", "the module own_wrong has no "),
        ("own_wrong:Half", "expected a dataclass with the methods init, round, predictor"),
        ("own_wrong:number", "expected a dataclass"),
        ("own_broken:Mine", "cannot be imported: SyntaxError"),
        ("own_failing:Mine", "cannot be imported: ZeroDivisionError: division by zero"),
        ("FedAvgg", "(did you mean 'fedavg'?)"),
    ],
)
def test_what_cannot_be_an_algorithm_is_explained(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, text in (("own_wrong", MINE), ("own_broken", "def"), ("own_failing", "1 / 0")):
        (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError) as caught:
        algorithm_class(name)
    assert message in str(caught.value)
