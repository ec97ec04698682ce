"""The command `raysim doctor` without Ray."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from raysim.cli.main import main

SMALL = (
    *("task.data.sites=3", "task.data.size=[16,16]", "task.data.cases=4", "task.data.test=2", "task.data.val=0"),
    *("network={name: unet, channels: [2, 4], strides: [2]}", "task.batch_size=2"),
)


ALGORITHMS = """
import os
from dataclasses import dataclass
from raysim import LocalTraining, weights

@dataclass(frozen=True, kw_only=True)
class Lost(LocalTraining):
    def init(self, task):
        return weights(task.network())
    def fit(self, net, site, **given):
        raise LookupError("no such organ")
    def round(self, fleet, state):
        return state, {}
    def predictor(self, site, state):
        return None

@dataclass(frozen=True, kw_only=True)
class Dies(Lost):
    def fit(self, net, site, **given):
        os.kill(os.getpid(), 9)
"""


@pytest.fixture
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_doctor_case.py").write_text(ALGORITHMS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        ([], 0, r"Ray +ok +not used: backend=local"),
        pytest.param(
            ["algorithm=my_doctor_case:Lost"],
            *(1, r"batch +wrong +LookupError: no such organ"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["algorithm=my_doctor_case:Dies"],
            *(1, r"batch +wrong +the process died with exit code -9"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["resources.gpus_per_client=1"],
            *(3, r"resources +wrong +requested 1 client actor of 1 CPU and 1 GPU"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_without_ray(
    arguments: list[str], code: int, line: str, working_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", *SMALL, "backend=local", *arguments]) == code
    shown = capsys.readouterr().out
    assert re.search(line, shown)
    assert ("resources.cpus_per_client=" in shown) == ("algorithm=" not in "".join(arguments))
    assert "Traceback" not in shown
    assert not (working_directory / "runs").exists()


@pytest.mark.slow
def test_tasks_on_classes_and_on_tables(working_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["site,split,image,label,size"]
    for site, count in (("a", 4), ("b", 6)):
        for number, split in enumerate(["val", *["train"] * count]):
            Image.new("L", (16, 12), number).save(working_directory / f"{site}{number}.png")
            lines.append(f"{site},{split},{site}{number}.png,{number % 2},{number}.5")
    (working_directory / "t.csv").write_text("\n".join(lines))
    given = ["backend=local", "task.data.table=t.csv", "task.data.cache=cache", "task.batch_size=3"]
    for arguments, network in (
        (["task=classification", "network={name: classifier, channels: [2, 2]}"], r"\d+ parameters"),
        (["task=tabular"], "4 parameters, 16 B as a model"),  # a weight and a bias for each of two classes
    ):
        assert main(["doctor", *given, *arguments]) == 0
        shown = capsys.readouterr().out
        assert re.search(rf"batch +3 examples of b, .*\n +network +{network}", shown)
        assert re.search(r"data +ok +\S+ can be read", shown)
        assert re.search(r"cache +ok +\S+/cache can be written", shown)
