"""The report of a run: failures near the top, escaped text, and a page for every outcome of a run."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from algorithms.fedavg import FedAvg
from raysim import PredictionSet
from raysim.core.errors import SiteError
from raysim.core.events import RunFinished
from raysim.core.results import FailureAction, FailureEvent, RunOutcome
from raysim.federation.runner import run_federation
from raysim.reporting.console import describe_best
from raysim.reporting.html_report import by_cause, failure_sentences, write_report
from raysim.reporting.plots import render_svg
from tests.support import toy
from tests.support.page import Page
from tests.support.plans import make_plan, plain_fleet

NASTY = "<b>&amp;\"'$x_$"


def run(out: Path, sites: Any, algorithm: Any = None, **keys: Any) -> Page:
    """The page of a run of the toy task, whether the run fails or not."""
    task = toy.task(sites, outside=[name for name in sites if name.startswith("out")])
    algorithm = algorithm or FedAvg(optimizer="sgd", momentum=0.0, lr=0.1)
    plan = make_plan(out, task, algorithm, **{"rounds": 2, "seed": 7, "checkpoint_every": 9} | keys)
    with suppress(SiteError):
        list(run_federation(plan, plain_fleet(plan)))
    return Page(write_report(out))


def failure(round: int, sites: str, action: Any, cause: str = "lost", seconds: float = 1.5) -> dict[str, Any]:
    return asdict(FailureEvent(round, "call 1", tuple(sites), "", cause, action, seconds))


def test_failure_sentences() -> None:
    left_out = [
        failure(1, "a", FailureAction.LEFT_OUT),
        failure(1, "b", FailureAction.LEFT_OUT),
        failure(4, "c", FailureAction.LEFT_OUT),
    ]
    again = failure(2, "abc", FailureAction.RETRIED)
    back = failure(3, "", FailureAction.ROLLED_BACK)
    ended = failure(5, "a", FailureAction.RUN_ENDED)
    assert failure_sentences([], RunOutcome.DONE, 1.0) == []
    assert failure_sentences([*left_out, again], RunOutcome.DONE, 0.8) == [
        "3 replies were left out in 2 rounds (allowed by min_replies=0.8).",
        "Client actors were lost 1 time; 3 calls at sites ran again. The results do not change.",
        "In all, 4 failures cost 6.0 s of work.",
    ]
    assert failure_sentences(left_out[2:], RunOutcome.DONE, None)[0] == "1 reply was left out in 1 round."
    assert failure_sentences([back], RunOutcome.DONE, 1.0)[0] == "The run returned to its last checkpoint 1 time."
    assert failure_sentences([ended], RunOutcome.DONE, 1.0)[0] == "A failure ended the run 1 time, and it was resumed."
    assert failure_sentences([ended], RunOutcome.FAILED, 1.0) == []  # the error is shown separately
    assert failure_sentences([ended, ended], RunOutcome.FAILED, 1.0)[0] == "A failure ended the run 2 times."


def test_causes_that_differ_only_in_numbers_are_merged() -> None:
    found = by_cause(
        [
            failure(1, "a", FailureAction.LEFT_OUT, "the loss is nan at step 3 of 8"),
            failure(2, "bc", FailureAction.LEFT_OUT, "the loss is nan at step 5 of 8", seconds=2.0),
            failure(2, "a", FailureAction.RETRIED, "no answer for 5.5 s", seconds=9.0),
        ]
    )
    assert found == [
        {"cause": "no answer for 5.5 s", "failures": 1, "sites": 1, "seconds": 9.0},
        {"cause": "the loss is nan at step … of …", "failures": 2, "sites": 3, "seconds": 3.5},
    ]


def test_names_are_escaped(tmp_path: Path) -> None:
    page = run(tmp_path, {NASTY: toy.A, "b": toy.B, f"out {NASTY}": toy.B})
    assert page.text.count(NASTY) >= 4  # beside its bar and in the table, inside and outside
    assert "amp;amp;" in (tmp_path / "report.html").read_text()


def test_report_without_scores_and_rounds(tmp_path: Path) -> None:
    page = run(tmp_path, {"a": toy.A, "b": ()})  # b has no training data
    assert "The run failed: site 'b' failed in round 1" in page.text
    assert "No site has been evaluated yet." in page.text
    assert "svg" not in page.tags


def test_summary_alone_is_enough_for_a_page(tmp_path: Path) -> None:
    run(tmp_path / "all", {"a": toy.A, "out": toy.B})
    (tmp_path / "some").mkdir()
    shutil.copy(tmp_path / "all" / "summary.json", tmp_path / "some")
    for empty in ((), ("config.yaml", "rounds.parquet", "failures.jsonl", "placement.json", "env.json")):
        for name in empty:
            (tmp_path / "some" / name).touch()
        page = Page(write_report(tmp_path / "some"))
        assert "inside/test/distance (chosen, lower is better)" in page.text
    merges = (f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40))  # unfold without limit
    (tmp_path / "some" / "config.yaml").write_text("a0: &a0 {x: 1}\n" + "".join(merges))
    assert "a39: &a39" in Page(write_report(tmp_path / "some")).text


@dataclass(frozen=True, kw_only=True)
class Off(FedAvg):
    """Predicts the output of the global model plus one."""

    def predictor(self, site: Any, model: Any) -> Any:
        return lambda inputs: site.predict_module(model)(inputs) + 1.0


def test_the_global_model_is_listed_only_if_it_differs(tmp_path: Path) -> None:
    sites = {"a": toy.A, "b": toy.B, "out": toy.B}
    same = run(tmp_path / "same", sites)
    assert "A metric without a @global row has the same scores for the global model" in same.text
    assert "test distance @global" not in same.text
    other = run(tmp_path / "other", sites, Off(optimizer="sgd", momentum=0.0, lr=0.1))
    assert "test distance test distance @global actor" in other.text  # columns of the sites
    assert "inside, mean @global" in other.text  # a line of the plot
    assert "A metric without a @global row" not in other.text


@dataclass(frozen=True, kw_only=True)
class Noting(FedAvg):
    """FedAvg with a note, a metric without direction, which has no worst site."""

    def predictor(self, site: Any, model: Any) -> Any:
        return PredictionSet(self.predict_module(site, model), notes=lambda split: {"share": 0.25})


def test_notes_of_a_method_are_among_the_metrics(tmp_path: Path) -> None:
    page = run(tmp_path, {"a": toy.A, "b": toy.B}, Noting(optimizer="sgd", momentum=0.0, lr=0.1))
    assert "inside/test/share 0.2500 0.2500" in page.text  # mean and weighted mean


def test_many_sites_are_a_histogram_and_failures_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raysim.reporting.plots.BARS", 7)  # eight sites are many here, because a run of 61 is slow
    sites = {f"site-{number:03}": ((1.0, number % 7),) for number in range(8)}
    run(tmp_path, sites, rounds=1)
    lines = [json.dumps(failure(1 + n % 2, "a", FailureAction.LEFT_OUT, f"reason {n} \udc80")) for n in range(80)]
    (tmp_path / "failures.jsonl").write_text("\n".join([*lines, '{"round": 2, "ca']))
    page = Page(write_report(tmp_path))
    assert "30 more failures are in failures.jsonl." in page.text
    assert "80 replies were left out in 2 rounds" in page.text
    assert "site-007" in page.text
    assert "distance (lower is better)" in page.text  # the axis of the histogram
    assert (tmp_path / "report.html").stat().st_size < 500_000


def test_no_label_of_an_axis_is_cut_off() -> None:
    losses = [8.14, *[12.4] * 18, 13.58, 1.87, *[0.83] * 19]

    def draw(axes: Any) -> None:
        axes.plot(range(1, 41), losses, marker=".")
        axes.set_xlabel("round")
        axes.set_xlim(0.5, 40.5)

    labels = re.findall(r'text-anchor: end[^>]* x="([\d.]+)"[^>]*>([^<]+)<', render_svg("loss", draw, 2.5))
    assert "12.5" in {label for _, label in labels}
    assert all(float(x) > 5 * len(label) for x, label in labels), labels


def test_the_best_and_the_last_round_are_labelled(tmp_path: Path) -> None:
    sites = {"a": toy.A, "b": toy.B}
    task = toy.task(sites, val={"a": ((1, 1),)})
    algorithm = FedAvg(optimizer="sgd", momentum=0.0, lr=0.1)
    plan = make_plan(tmp_path / "run", task, algorithm, rounds=6, metric="inside/val/distance")
    *_, end = run_federation(plan, plain_fleet(plan))
    assert isinstance(end, RunFinished)
    assert end.values["best"]["round"] == 3
    page = Page(write_report(tmp_path / "run"))
    assert "Last evaluated round: 6 metric" in page.text
    assert "Best round by inside/val/distance: 3 metric" in page.text
    assert describe_best(end.values).startswith("best round 3: inside/val/distance 0.0")
    assert "; last evaluated round 6: inside/val/distance 0.2" in describe_best(end.values)
    page = run(tmp_path / "without", sites)
    assert "No best round: no site that the metric refers to has val cases" in page.text
