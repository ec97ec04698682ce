"""Refused runs: the exit code, the message, and that nothing is written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from raysim.cli.main import main

SMALL = (
    *("rounds=2", "task.data.sites=3", "task.data.size=[16,16]", "task.data.cases=4", "task.data.test=2"),
    *("task.data.val=0", "network={name: unet, channels: [2, 4], strides: [2]}", "task.batch_size=2"),
)


LOCAL = (*SMALL, "backend=local")


MINE = '''
"""An algorithm of a user: FedAvg that fails in the third round if `trouble` is set."""

from dataclasses import dataclass
from typing import Annotated

from raysim import LocalTraining, Model, Reply, mean, weights


@dataclass(frozen=True)
class Known:
    model: Model
    rounds: int = 0


@dataclass(frozen=True, kw_only=True)
class Mine(LocalTraining):
    trouble: Annotated[str, "what happens in the third round"] = "none"

    def init(self, task):
        return Known(weights(task.network()))

    def client(self, site, model):
        net = site.load(model)
        if self.trouble == "nan" and site.round == 2 and site.name == "site-02":
            next(net.parameters()).data.fill_(float("nan"))
        if self.trouble == "bug" and site.round == 2 and site.name == "site-02":
            raise LookupError("no such organ")
        return Reply(weights(net), metrics={"loss": self.fit(net, site)})

    def round(self, fleet, state):
        return Known(mean(fleet.map(self.client, state.model)), state.rounds + 1), {}

    def predictor(self, site, state):
        return site.predict_module(state.model)
'''


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_algorithm.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)


def test_help_of_run_shows_every_key_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    shown = capsys.readouterr().out
    for key in (
        "rounds",
        "cohort.size",
        "cohort.dropout",
        "evaluate_every",
        "resources.gpus_per_client",
        "resources.client_actors",
        "ray_address",
    ):
        assert re.search(rf"^  {re.escape(key)} .*\(default: .+\)$", shown, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frun"], "invalid choice: 'frun'"),
        (["run", "--config"], "expected one argument"),
        (["list", "hospitals"], "invalid choice: 'hospitals'"),
    ],
)
def test_a_wrong_command_is_wrong_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


REFUSED = [
    (["--rounds=3"], "unknown argument '--rounds=3'; keys are written without dashes: rounds=3; see raysim run --help"),
    (["rounds"], "cannot read 'rounds': expected key=value"),
    (["rondus=3"], "unknown key 'rondus' (did you mean 'rounds'?)"),
    (["algorithm.lrr=3"], "unknown key 'algorithm.lrr' (did you mean 'algorithm.lr'?)"),
    (["algorithm.lr=-1"], "algorithm.lr=-1: expected a number greater than 0"),
    (["algorithm=fedavgg"], "unknown algorithm 'fedavgg' (did you mean 'fedavg'?)"),
    (["algorithm=my_algorithm:Yours"], "the module my_algorithm has no Yours"),
    (["task=synthetik"], "unknown task 'synthetik' (did you mean 'synthetic'?)"),
    (["network=unett"], "unknown network 'unett'"),
    (["network.chanels=[4,8]"], "'chanels'"),
    (["network={name: unet, channels: [2, 4, 8, 16, 32, 64], strides: [2, 2, 2, 2, 2]}"], "fails on an image"),
    (["task.data.sites=0"], "task.data.sites=0: expected a number greater than 0"),
    (["task.data.outside=[site-01]"], "expected a distinct name for each outside site"),
    (["cohort=4"], "cohort=4: expected a fraction up to 1.0, or 1 to 3 sites"),
    (["cohort=1.5"], "cohort=1.5: expected a fraction up to 1.0, or 1 to 3 sites"),
    (["metric=dice"], "metric='dice': expected one of inside/test/dice"),
    (["-c", "none.yaml"], "cannot read the configuration none.yaml: No such file or directory"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[arguments[-1] for arguments, _ in REFUSED])
def test_wrong_input_is_refused_and_nothing_written(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert main(["run", *LOCAL, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("raysim: ")
    assert message in error
    assert "Traceback" not in error
    assert [path for path in sorted(tmp_path.rglob("*")) if "__pycache__" not in path.parts] == before


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_an_output_that_exists_is_refused_and_not_changed(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "old"
    kept = old
    if kind == "folder":
        old.mkdir()
        kept = old / "summary.json"
    kept.write_text("precious")
    assert main(["run", *LOCAL, "--out", "old"]) == 2
    assert "--out old already exists" in capsys.readouterr().err
    assert kept.read_text() == "precious"
    assert kind == "file" or list(old.iterdir()) == [kept]


def test_an_output_that_cannot_be_made_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    assert main(["run", *LOCAL, "--out", "file/run"]) == 2
    assert "cannot create the run directory" in capsys.readouterr().err


def test_a_default_that_is_a_list_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "tasks", "synthetic"]) == 0
    assert "[dice]" in capsys.readouterr().out


def test_a_gpu_that_this_machine_lacks_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["run", *LOCAL, "resources.gpus_per_client=0.5", "--out", "fast"]) == 3
    assert "raysim: resources: 0.5 GPU requested, but torch finds no GPU" in capsys.readouterr().err
    assert not Path("fast").exists()


def test_an_exception_before_a_site_is_called_leaves_no_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The traceback has the calls of the user, without those of raysim before them."""
    text = MINE.replace("        return Known(mean(", "        state.weights\n        return Known(mean(")
    (tmp_path / "own.py").write_text(text)
    line = text.splitlines().index("        state.weights") + 1
    before = sorted(tmp_path.rglob("*"))
    assert main(["run", *LOCAL, "algorithm=own:Mine", "--out", "deep/out"]) == 1
    error = capsys.readouterr().err
    assert error.splitlines()[:2] == [
        "Traceback (most recent call last):",
        f'  File "{tmp_path / "own.py"}", line {line}, in round',
    ]
    expected = f"AttributeError: 'Known' object has no attribute 'weights' (own.py, line {line}, in round)"
    assert error.splitlines()[-1] == f"raysim: the server failed in round 1: {expected}"
    assert [path for path in sorted(tmp_path.rglob("*")) if "__pycache__" not in path.parts] == before


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "Reply(weights(net), ",
            "Reply(net, ",
            r"a client function \(own\.py, line \d+\) must not send a network; write Reply",
        ),
        (
            "client(self, site, model)",
            "client(self, site)",
            r"takes 2 positional arguments but 3 .* \(own\.py, line \d+\)",
        ),
    ],
)
def test_a_wrong_client_function_leaves_no_directory(
    old: str, new: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert old in MINE
    (tmp_path / "own.py").write_text(MINE.replace(old, new).replace("net = site.load(model)", "net = site.load()"))
    before = sorted(tmp_path.rglob("*"))
    assert main(["run", *LOCAL, "algorithm=own:Mine", "--out", "out"]) == 1
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])
    assert [path for path in sorted(tmp_path.rglob("*")) if "__pycache__" not in path.parts] == before
