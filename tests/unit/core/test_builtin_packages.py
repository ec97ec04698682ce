"""A user's folders `algorithms` and `search_spaces` do not replace those of raysim, and their files can be named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from raysim.core.errors import ConfigError
from raysim.core.registry import algorithm_class, modules_from_paths, name_of
from tests.support.paths import ROOT

OWN = """
from __future__ import annotations

from dataclasses import dataclass

@dataclass(frozen=True)
class Forgot:
    mu: float = 0.5

    def init(self, task): ...
    def round(self, fleet, state): ...
    def predictor(self, site, state): ...
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a user's `algorithms`, `search_spaces` and modules."""
    for name in ("algorithms", "search_spaces", "my_methods"):
        (tmp_path / name).mkdir()
    for name in ("algorithms", "search_spaces"):
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the package of the user was imported')")
    for path in ("algorithms/forgot.py", "my_methods/forgot.py", "forgot_here.py"):
        (tmp_path / path).write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_packages_of_raysim_come_before_those_of_the_working_directory(folder: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, ''); import raysim, algorithms.fedavg, search_spaces\n"
        "from raysim.search.space_files import installed_spaces\n"
        "print(algorithms.fedavg.__file__, search_spaces.__file__, 'fedsm' in installed_spaces())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [f"{ROOT}/algorithms/fedavg.py", f"{ROOT}/search_spaces/__init__.py", "True"]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("forgot_here.py:Forgot", "forgot_here:Forgot"),
        ("my_methods/forgot.py:Forgot", "my_methods.forgot:Forgot"),
        ("./my_methods/forgot.py:Forgot", "my_methods.forgot:Forgot"),
        ("algorithms/forgot.py:Forgot", "algorithms/forgot.py:Forgot"),
    ],
)
def test_a_class_is_found_by_the_path_of_its_file(name: str, found: str, folder: Path) -> None:
    cls = algorithm_class(name)
    assert (cls.__name__, name_of(cls)) == ("Forgot", found)
    assert algorithm_class(found) is cls
    by_path = found.partition(":")[0].endswith(".py")
    assert [module.__name__ for module in modules_from_paths()] == ["algorithms/forgot.py"] * by_path


def test_a_class_is_found_by_an_absolute_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    name = f"{folder}/forgot_here.py:Forgot"
    assert name_of(algorithm_class(name)) == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("forgot_here.py", "; write forgot_here.py:CLASS, with the name of its class"),
        ("forgot_here.py:Remembered", "the module forgot_here.py has no Remembered"),
        ("gone/forgot.py:Forgot", "cannot be imported: FileNotFoundError: [Errno 2] No such file or directory: "),
        ("algorithms.forgot:Forgot", "; the package algorithms is that of raysim: write algorithms/forgot.py:Forgot"),
    ],
)
def test_the_name_to_write(name: str, message: str, folder: Path) -> None:
    with pytest.raises(ConfigError) as error:
        algorithm_class(name)
    assert message in str(error.value)
