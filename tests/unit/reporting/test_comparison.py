"""The comparison of runs: numbers worked out by hand, pooled folds, and what is refused."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from raysim.core.errors import ConfigError
from raysim.core.formatting import hash_name
from raysim.reporting.comparison import CompareOptions, Comparison, compare
from raysim.reporting.comparison_tables import render, result_table, site_table
from raysim.reporting.finished_runs import comparable_runs
from tests.support.finished_runs import write_run
from tests.unit.reporting.test_html_report import Page


def compared(folder: Path, **options: Any) -> Comparison:
    return compare([folder], CompareOptions(**options))


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """FedAvg and FedBN with two seeds, at a with two cases and b with one."""
    folder = tmp_path / "runs"
    write_run(folder / "0", {"a": [0.2, 0.4], "b": [0.7]}, "algorithm=fedavg")
    write_run(folder / "1", {"a": [0.4, 0.6], "b": [0.9]}, "algorithm=fedavg seed=1")
    write_run(folder / "2", {"a": [0.4, 0.5], "b": [0.6]}, "algorithm=fedbn", seconds=4.0)
    write_run(folder / "3", {"a": [0.6, 0.7], "b": [0.8]}, "algorithm=fedbn seed=1")
    return folder


def test_means_differences_and_sites(two: Path) -> None:
    found = compared(two)
    fedavg, fedbn = found.groups
    # By seed, the means over sites of FedAvg are 0.5 and 0.7, those of FedBN 0.525 and 0.725.
    assert (fedavg.mean, fedbn.mean) == pytest.approx((0.6, 0.625))
    assert fedavg.deviation == pytest.approx(np.sqrt(0.02))
    assert fedavg.sites["a"] == pytest.approx((0.4, np.sqrt(0.02)))
    # By case, averaged over seeds: FedAvg (0.3, 0.5, 0.8), FedBN (0.5, 0.6, 0.7).
    assert (fedavg.difference, fedavg.p_value) == (None, None)
    assert fedbn.difference == pytest.approx(0.025)
    # The ranks of 0.2, 0.1, -0.1 are 3, 1.5, 1.5.
    assert fedbn.effect == pytest.approx((3 + 1.5 - 1.5) / 6)
    assert (fedbn.bytes, fedbn.seconds, fedbn.seeds) == (300, 3.0, 2)
    assert found.worst_site(fedbn) == ("a", pytest.approx(0.55))
    assert (str(found.score), found.score.round, found.cases) == ("inside/test/dice", "best", 3)
    # All draws of a between (0.3, 0.3) and (0.5, 0.5), with 0.8 at b.
    assert (fedavg.low, fedavg.high) == pytest.approx((0.55, 0.65))


def test_the_reference_is_chosen(two: Path) -> None:
    fedavg, fedbn = compared(two, reference="fedbn").groups
    assert fedbn.difference is None
    assert fedavg.difference == pytest.approx(-0.025)
    message = r"--reference fedbm: no such group \(did you mean 'fedbn'\?\); expected fedavg, fedbn"
    with pytest.raises(ConfigError, match=message):
        compared(two, reference="fedbm")


def test_p_values_are_corrected(tmp_path: Path) -> None:
    values = np.linspace(0.2, 0.7, 6)
    for number, gain in enumerate((0.0, 0.1, 0.2)):
        write_run(tmp_path / str(number), {"a": (values + gain * np.arange(1, 7)).tolist()}, f"rounds={number + 1}")
    # Each p is 2 / 64; the smaller of both is doubled, and the other must not be smaller.
    for test in ("wilcoxon", "permutation"):
        assert [group.p_value for group in compared(tmp_path, test=test).groups[1:]] == pytest.approx([4 / 64] * 2)


def test_a_case_without_a_value_is_left_out_of_the_test(tmp_path: Path) -> None:
    write_run(tmp_path / "0", {"hd95": {"a": [1, 2, None]}}, "rounds=1")
    write_run(tmp_path / "1", {"hd95": {"a": [2, 4, 9]}}, "rounds=2")
    found = compared(tmp_path, metric="hd95")
    assert [group.mean for group in found.groups] == [1.5, 5.0]
    assert found.groups[1].effect == 1.0
    assert found.better == "lower"
    assert found.notes == ["a test leaves out up to 1 case without a value"]


def test_a_site_without_a_value_is_left_out(tmp_path: Path) -> None:
    write_run(tmp_path / "0", {"a": [1, 2], "b": [None, None]}, "rounds=1")
    write_run(tmp_path / "1", {"a": [2, 4], "b": [5, None]}, "rounds=2")
    found = compared(tmp_path)
    assert [group.mean for group in found.groups] == [1.5, 4.0]
    assert found.worst_site(found.groups[0]) == ("a", 1.5)
    assert site_table(found)["b"].tolist() == ["-", "5.0000"]
    write_run(tmp_path / "2", {"a": [None, None], "b": [None, None]}, "rounds=3")
    refused(tmp_path, "inside/test/dice of rounds=3: no case has a value; use another --metric")


def test_an_area_needs_cases_of_both_classes(tmp_path: Path) -> None:
    write_run(tmp_path / "0", logits([0.8, 0.6], [1, 1]))
    refused(tmp_path, "inside/test/auc of fedavg: no site has cases of both classes")


def logits(scores: list[float], labels: list[int]) -> Any:
    return {"label": {"a": labels}, "logit_0": {"a": [0.0] * len(scores)}, "logit_1": {"a": scores}}


def test_areas_under_the_curve(tmp_path: Path) -> None:
    labels = [1, 1, 1, 0, 0]
    write_run(tmp_path / "0", logits([0.8, 0.6, 0.4, 0.5, 0.3], labels), "rounds=1")
    write_run(tmp_path / "1", logits([0.7, 0.1, 0.6, 0.2, 0.55], labels), "rounds=2")
    found = compared(tmp_path)  # accuracy and others have no values here
    assert (found.score.metric, found.test) == ("auc", "delong")
    assert found.notes == ["the main metric dice has no values by case, so auc is compared"]
    first, second = found.groups
    assert (first.mean, second.mean) == pytest.approx((5 / 6, 2 / 3))
    assert second.p_value == pytest.approx(0.72367, abs=1e-5)  # z = 1 / sqrt(8), as in test_statistics
    assert second.effect is None


def test_folds_are_pooled(tmp_path: Path) -> None:
    for fold in range(2):
        for algorithm, gain in (("fedavg", 0.0), ("fedbn", 0.1)):
            values = {"a": [0.1 + fold / 2 + gain, 0.3 + fold / 2 + gain]}
            keys = f"algorithm={algorithm}"
            run = write_run(tmp_path / f"{algorithm}-{fold}", values, keys, names=f"{fold}-{{case}}.png")
            config = run / "config.yaml"
            config.write_text(config.read_text().replace("  data:\n", f"  data:\n    folds: 2\n    fold: {fold}\n"))
    fedavg, fedbn = compared(tmp_path).groups
    assert (fedavg.seeds, fedavg.mean, fedbn.mean) == (1, pytest.approx(0.45), pytest.approx(0.55))
    assert compared(tmp_path).cases == 4
    shutil.rmtree(tmp_path / "fedavg-1")
    shutil.rmtree(tmp_path / "fedbn-1")
    assert "fedavg: not all folds are given, so the scores are those of a part of the cases" in compared(tmp_path).notes


def test_outside_sites(tmp_path: Path) -> None:
    write_run(tmp_path / "0", {"x": [0.5, 0.7]}, role="outside")
    assert str(compared(tmp_path).score) == "outside/test/dice"
    with pytest.raises(ConfigError, match="has no inside/test cases"):
        compared(tmp_path, metric="inside/test/dice")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "dise"}, r"--metric dise: .* has no such values \(did you mean 'dice'\?\); expected one of dice"),
        ({"metric": "test/dice"}, "--metric test/dice: expected a metric such as dice, or role/split/metric"),
        ({"metric": "inside/val/dice", "split": "test"}, "contradict each other; remove --split"),
        ({"split": "val"}, "has no val cases; use another --split"),
    ],
)
def test_a_score_that_does_not_exist(two: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compared(two, **options)


def test_without_a_best_round_the_last_is_compared(tmp_path: Path) -> None:
    write_run(tmp_path / "0", {"a": [0.5]}, best=None)
    assert compared(tmp_path).score.round == "last"
    with pytest.raises(ConfigError, match=r"--round best: .* has no best round; use --round last"):
        compared(tmp_path, round="best")


def refused(folder: Path, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compared(folder)


def test_other_cases_are_not_paired(tmp_path: Path) -> None:
    write_run(tmp_path / "0", {"a": [0.5, 0.6]})
    write_run(tmp_path / "1", {"a": [0.5]}, "rounds=3")
    refused(tmp_path, r"0 and .*1 have different inside/test cases: 1 only in .*0, such as a a-1.png; give runs")
    shutil.rmtree(tmp_path / "1")
    write_run(tmp_path / "1", {"a": [0.5, 0.6]}, "rounds=3", names="other-{case}.png")
    refused(tmp_path, "2 only in .*0, such as a a-0.png, 2 only in .*1, such as a other-0.png")


def test_cases_without_names_need_the_same_data(tmp_path: Path) -> None:
    write_run(tmp_path / "0", {"a": [0.5]}, names=None)
    write_run(tmp_path / "1", {"a": [0.5]}, "rounds=3", names=None)
    assert len(compared(tmp_path).groups) == 2
    write_run(tmp_path / "2", {"a": [0.5]}, "task.data.seed=3", names=None)
    refused(tmp_path, "cases without names cannot be paired, because the runs differ in task.data.seed")


def test_runs_that_cannot_be_compared(tmp_path: Path) -> None:
    refused(tmp_path, "no finished run; give folders of finished runs")
    refused(tmp_path / "none", "none is not a folder")
    write_run(tmp_path / "0", {"a": [0.5]})
    (empty := tmp_path / "no-runs").mkdir()
    with pytest.raises(ConfigError, match="no-runs has no run; give folders of finished runs or searches"):
        comparable_runs([tmp_path / "0", empty])
    other = write_run(tmp_path / "1", {"a": [0.5]}, "seed=1", status="failed")
    refused(tmp_path, "1 is failed, not done; to continue it: raysim resume .*1; or give the other runs")
    (other / "summary.json").unlink()
    refused(tmp_path, "1 has not ended; wait until it ends")
    shutil.rmtree(other)
    (write_run(other, {"a": [0.5]}, "seed=1") / "cases.parquet").unlink()
    refused(tmp_path, "1 has no cases.parquet")
    shutil.rmtree(other)
    write_run(other, {"a": [0.5]}, "task=segmentation task.data.table=x.csv")
    refused(tmp_path, "0 is a run of task=synthetic, .*1 of task=segmentation")


@pytest.mark.parametrize("damage", [b"", b"PAR1 and no table", b"PAR1" * 9])
def test_a_damaged_table_is_refused(tmp_path: Path, damage: bytes) -> None:
    (write_run(tmp_path / "0", {"a": [0.5]}) / "cases.parquet").write_bytes(damage)
    refused(tmp_path, r"cannot read .*cases.parquet: .*; give the other runs")


def test_a_table_with_other_columns_is_refused(tmp_path: Path) -> None:
    file = write_run(tmp_path / "0", {"a": [0.5]}) / "cases.parquet"
    pd.read_parquet(file).drop(columns="split").to_parquet(file)
    refused(tmp_path, r"cannot read .*cases.parquet: .*; give the other runs")


def test_unfinished_trials_of_a_search_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "search.yaml").touch()
    write_run(tmp_path / "trials" / "0000", {"a": [0.5]}, "algorithm.lr=0.1")
    write_run(tmp_path / "trials" / "0001" / "seed-0", {"a": [0.6]}, "algorithm.lr=0.2")
    write_run(tmp_path / "trials" / "0001" / "seed-1", {"a": [0.8]}, "algorithm.lr=0.2 seed=1")
    write_run(tmp_path / "trials" / "0002", {"a": [0.5]}, "algorithm.lr=0.3", status="interrupted")
    found = compared(tmp_path)
    assert [(group.name, group.mean) for group in found.groups] == [("lr=0.1", 0.5), ("lr=0.2", pytest.approx(0.7))]
    assert "left out: 1 trial of a search that did not finish" in found.notes


def test_repeated_trials_of_a_search_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "search.yaml").touch()
    for name in ("0001", "0002"):
        write_run(tmp_path / "trials" / name, {"a": [0.5, 0.6]})
    found = compared(tmp_path)
    assert [group.seeds for group in found.groups] == [1]
    assert found.notes == ["left out: 1 trial of a search with the values of another one"]


def test_tables_in_all_formats(two: Path, tmp_path: Path) -> None:
    found = compared(two)
    table = pd.read_csv(io.StringIO(render(found, "csv")))
    assert table["mean"].tolist() == pytest.approx([0.6, 0.625])
    assert table["a/mean"].tolist() == pytest.approx([0.4, 0.55])
    latex = render(found, "latex")
    assert r"0.6250 $\pm$ 0.1414 & 0.6000 to 0.6500 & $+0.0250$" in latex
    assert r"95 \% interval" in latex
    (tmp_path / "page.html").write_text(render(found, "html"))
    assert "0.6250 ± 0.1414" in Page(tmp_path / "page.html").text
    text = render(found, "text")
    assert "fedbn" in text
    assert "difference from fedavg" in text


def test_a_single_group_has_no_columns_of_differences(tmp_path: Path) -> None:
    write_run(tmp_path / "0", {"a": [0.5, 0.7]})
    columns = ["group", "seeds", "mean", "95 % interval", "worst site", "bytes", "seconds"]
    assert list(result_table(compared(tmp_path))) == columns


def test_evaluations_beside_the_runs_are_left_out(two: Path) -> None:
    kept = {"a": [0.9, 0.9], "b": [0.9]}
    evaluation = write_run(two / "others" / "0", kept, "algorithm=fedavg", run=str(two / "0"))
    found = compared(two)
    assert [group.mean for group in found.groups] == pytest.approx([0.6, 0.625])
    assert found.notes == ["left out: 1 evaluation of runs: give only the folders of evaluations to compare these"]
    assert [group.mean for group in compared(two / "others").groups] == pytest.approx([0.9])
    with pytest.raises(ConfigError, match="have the same configuration and seed"):
        compare([two, evaluation], CompareOptions())


def test_evaluations_of_the_best_round_are_compared(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "0", {"a": [0.2, 0.4]}, best=None, run="runs/1")
    cases = pd.read_parquet(folder / "cases.parquet")
    cases.assign(best=True, last=False).to_parquet(folder / "cases.parquet", index=False)
    found = compared(tmp_path)
    assert (found.score.round, found.groups[0].mean) == ("best", pytest.approx(0.3))
    write_run(tmp_path / "1", {"a": [0.2, 0.4]}, "seed=1", best=None, run="runs/2")
    with pytest.raises(ConfigError, match="is not an evaluation of the last round; give evaluations of one round"):
        compared(tmp_path)


def test_runs_with_and_without_names_of_cases_are_paired(tmp_path: Path) -> None:
    write_run(tmp_path / "0", {"a": [0.2, 0.4]})
    names = {name: hash_name(name) for name in ("a-0.png", "a-1.png")}
    folder = write_run(tmp_path / "1", {"a": [0.4, 0.6]}, "seed=1 anonymous_cases=true")
    cases = pd.read_parquet(folder / "cases.parquet")
    cases.assign(image=cases["image"].map(names)).to_parquet(folder / "cases.parquet", index=False)
    assert [group.seeds for group in compared(tmp_path).groups] == [2]


def test_a_difference_that_the_names_do_not_have_is_noted(tmp_path: Path) -> None:
    write_run(tmp_path / "0", {"a": [0.2, 0.4]}, "algorithm=fedavg")
    write_run(tmp_path / "1", {"a": [0.4, 0.6]}, "algorithm=fedbn evaluate_every=3")
    assert compared(tmp_path, by="algorithm").notes == ["the groups also differ in evaluate_every"]
    assert compared(tmp_path).notes == []
