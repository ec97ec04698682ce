"""Reports of runs that lose replies, fail, are interrupted and resumed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from raysim.cli.main import main
from tests.support.page import Page
from tests.support.wrong_files import save_picture, write_data_sets

LOCAL = (
    *(
        "backend=local",
        "rounds=3",
        "task.data.sites=3",
        "task.data.size=[16,16]",
        "task.data.cases=4",
        "task.data.test=2",
    ),
    *("task.data.val=0", "network={name: unet, channels: [2, 4], strides: [2]}", "task.batch_size=2"),
)


MINE = '''
"""FedAvg that fails in the second round in the manner that a file in the working directory selects."""

from dataclasses import dataclass
from pathlib import Path

from raysim import LocalTraining, Reply, mean, weights


@dataclass(frozen=True, kw_only=True)
class Mine(LocalTraining):
    def init(self, task):
        return weights(task.network())

    def client(self, site, model):
        if Path("full").exists():
            Path("out/report.html").mkdir(exist_ok=True)
        if Path("bug").exists() and site.round == 1:
            raise LookupError("no <organ> & no $such$ site")
        if Path("stop").exists() and site.round == 1:
            raise KeyboardInterrupt
        net = site.load(model)
        return Reply(weights(net), metrics={"loss": self.fit(net, site)})

    def round(self, fleet, model):
        return mean(fleet.map(self.client, model)), {}

    def predictor(self, site, model):
        return site.predict_module(model)
'''


@pytest.fixture
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_algorithm.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("working_directory")
def test_left_out_replies_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *LOCAL, "chaos=drop 0.3", "min_replies=0.3", "seed=1", "--out", "out"]) == 0
    shown = capsys.readouterr().out
    assert shown.endswith(f"report: {tmp_path / 'out' / 'report.html'}\n")
    page = Page(tmp_path / "out" / "report.html")
    summary = json.loads(Path("out/summary.json").read_text())
    failures = [json.loads(line) for line in Path("out/failures.jsonl").read_text().splitlines()]
    count, rounds = len(failures), len({failure["round"] for failure in failures})
    assert summary["failures"]["left_out"] == count > 1
    within = f"{rounds} round{'s' if rounds > 1 else ''}"
    assert f"{count} replies were left out in {within} (allowed by min_replies=0.3)." in page.text
    assert page.text.index("replies were left out") < page.text.index("Last evaluated round")
    assert page.text.startswith("fedavg on synthetic: out fedavg on synthetic done run out rounds 3 of 3")
    assert summary["digest"] in page.text
    assert "inside/test/dice (chosen, higher is better)" in page.text
    for expected in ("reply dropped by chaos", "site-03", "training loss", "bytes per round", "batch_size: 2"):
        assert expected in page.text


@pytest.mark.usefixtures("working_directory")
def test_a_failed_run_shows_its_error_also_on_a_full_disk(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bug").touch()
    arguments = ["run", *LOCAL, "algorithm=my_algorithm:Mine"]
    assert main([*arguments, "--out", "bad"]) == 1
    page = Page(Path("bad/report.html"))
    assert "The run failed: site 'site-01' failed in round 2: LookupError: no <organ> & no $such$" in page.text
    assert "raise LookupError(" in page.text  # where it happened
    Path("full").touch()
    capsys.readouterr()
    assert main([*arguments, "--out", "out"]) == 1
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1].startswith("raysim: site 'site-01' failed in round 2: LookupError")
    assert printed.out.splitlines()[-1].startswith("report.html was not written: IsADirectoryError")
    assert not Path("out/report.html").is_file()


@pytest.mark.usefixtures("working_directory")
def test_interrupted_and_resumed_runs_have_reports() -> None:
    Path("stop").touch()
    assert main(["run", *LOCAL, "algorithm=my_algorithm:Mine", "--out", "out"]) == 130
    assert "The run was interrupted after 1 round." in Page(Path("out/report.html")).text
    Path("stop").unlink()
    assert main(["resume", "out"]) == 0
    assert "done run out rounds 3 of 3" in Page(Path("out/report.html")).text


DATA = ("run", "backend=local", "rounds=1", "task.batch_size=2", "task.data.cache=cache", "--out", "out")
MASKS = ("task=segmentation", "task.data.table=table.csv", "task.network.channels=[2,4]", "task.metrics=[dice,hd95]")
CLASSES = ("task=classification", "task.data.table=classes.csv", "network={name: resnet}")


@pytest.mark.parametrize(
    ("keys", "note", "cell"),
    [
        (MASKS, "val/dice, val/hd95: no value at b", "val/dice"),
        (CLASSES, "val/auc: no value at any site", "val/auc"),
    ],
)
@pytest.mark.usefixtures("working_directory")
def test_a_metric_that_some_cases_do_not_define_has_a_note(
    keys: tuple[str, ...], note: str, cell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The masks of site b in val are empty; each site has one case in val, so AUC has one class."""
    write_data_sets(Path.cwd())
    save_picture(Path("5_m.png"), np.zeros((16, 16), np.uint8))
    assert main([*DATA, *keys]) == 0
    shown = capsys.readouterr().out
    summary = json.loads(Path("out/summary.json").read_text())
    assert cell not in summary["sites"]["b"]
    assert note in summary["notes"]
    assert summary["notes"][-1].endswith("Means are over the other sites")
    assert f"note: {note}\n" in shown
    assert f"{note}." in Page(Path("out/report.html")).text
