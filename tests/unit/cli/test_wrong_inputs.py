"""The table of wrong inputs: each gives its exit code and its one line, and leaves no file behind."""

from __future__ import annotations

import re
import shlex
import shutil
import tomllib
import warnings
from pathlib import Path
from typing import Any

import pytest

from raysim.cli.main import main
from tests.support.paths import ROOT
from tests.support.wrong_files import WRONG_FILES, write_data_sets

TABLE = tomllib.loads((ROOT / "tests" / "wrong_inputs.toml").read_text())
INPUTS = TABLE["input"]
# What every message has: the expected value, or what to do.
CURE = re.compile(
    r"\b(expected|use|set|write|add|remove|did you mean|valid|supported|needs?|keep|store|save|correct|choose|try|give|"
    r"check|list|merge|rename|resample|replace|install|fill|run|lower|start|must|sites:|the name|make|convert|create|"
    r"scan|name|put)\b",
    re.IGNORECASE,
)


@pytest.fixture(scope="module")
def data_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data_sets")
    write_data_sets(folder)
    return folder


@pytest.fixture
def working_directory(data_sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_ray: None) -> Path:
    shutil.copytree(data_sets, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYSIM_CACHE", str(data_sets / "cache"))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # submit would set it for later tests
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    return tmp_path


def prepare(wrong: dict[str, Any]) -> list[str]:
    """Write the files of a wrong input; returns its command."""
    for function in wrong.get("make", ()):
        WRONG_FILES[function]()
    for name, text in wrong.get("files", {}).items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    for name, (old, new) in wrong.get("replace", {}).items():
        assert old in Path(name).read_text()
        Path(name).write_text(Path(name).read_text().replace(old, new, 1))
    return shlex.split(f"{TABLE['commands'][wrong['command']]} {wrong['arguments']}")


def execute(command: list[str]) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MONAI
        try:
            return main(command)
        except SystemExit as end:  # the parser of the arguments
            return int(end.code or 0)


def files(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*") if "__pycache__" not in path.parts)


@pytest.mark.parametrize("wrong", INPUTS, ids=[wrong["name"] for wrong in INPUTS])
def test_a_wrong_input_has_its_line(
    wrong: dict[str, Any], working_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = prepare(wrong)
    before = files(working_directory)
    code = execute(command)
    error = re.sub("0x[0-9a-f]+", "0x0", capsys.readouterr().err.replace(str(working_directory), "DIR"))
    assert code == wrong.get("exit", 2), error
    expected = ".*".join(map(re.escape, f"raysim: {wrong['error']}\n".split("[...]")))
    assert re.fullmatch(expected, error), error
    assert all(line.startswith("  ") for line in error.splitlines()[1:])  # several files have a line each
    assert CURE.search(error)
    assert files(working_directory) == before


def test_the_table_has_at_least_100_inputs_with_different_names() -> None:
    names = [wrong["name"] for wrong in INPUTS]
    assert len(set(names)) == len(names) >= 100
