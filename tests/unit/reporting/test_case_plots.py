"""The plots and tables of cases in report.html, against numbers by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

from raysim.reporting.case_plots import CaseValues, case_plots, confusion_matrices, roc_curve
from raysim.tasks.classification_metrics import auc

LOGITS = {"a": [[2.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 3.0]], "out": [[0.0, 1.0], [1.0, 0.0]]}
LABELS = {"a": [0, 1, 1, 1], "out": [1, 1]}


def table(*, best: bool = True, split: str = "test") -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for site, logits in LOGITS.items():
        for case, (row, label) in enumerate(zip(logits, LABELS[site], strict=True)):
            common = {"round": 3, "last": True, "best": best, "site": site, "split": split, "case": case}
            common["role"] = "outside" if site == "out" else "inside"
            values = {"label": label, "logit_0": row[0], "logit_1": row[1], "logit_1@global": 9.0}
            rows += [common | {"metric": metric, "value": float(value)} for metric, value in values.items()]
    return pd.DataFrame(rows)


def test_the_confusion_matrix() -> None:
    inside, outside = confusion_matrices(CaseValues(table()), ["no", "yes"])
    assert [(name, [count for count, _ in cells]) for name, cells in inside["rows"]] == [
        ("no", [1, 0]),
        ("yes", [1, 2]),
    ]
    assert [share for _, share in inside["rows"][1][1]] == pytest.approx([1 / 3, 2 / 3])
    assert outside["rows"] == [("no", [(0, 0.0), (0, 0.0)]), ("yes", [(1, 0.5), (1, 0.5)])]
    assert confusion_matrices(CaseValues(table()), [])[0]["names"] == ["0", "1"]


def test_the_best_round_and_the_test_cases_are_shown() -> None:
    other = table(best=False).assign(round=9, value=0.0)
    both = CaseValues(pd.concat([table(), other, table(split="val").assign(value=1.0)]))
    assert (both.round, both.split) == (3, "test")
    assert both.predictions("inside")[1].tolist() == LABELS["a"]
    assert CaseValues(table(best=False)).round == 3  # without a best round the last


@pytest.mark.parametrize("seed", range(3))
def test_the_area_under_the_roc_curve_is_the_metric(seed: int) -> None:
    random = np.random.default_rng(seed)
    logits, labels = random.integers(0, 4, (40, 2)).astype(float), random.integers(0, 2, 40)  # with ties
    false, true, area = roc_curve(softmax(logits, axis=1)[:, 1], labels == 1)
    assert area == pytest.approx(auc(logits, labels))
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert (np.diff(false) >= 0).all()


def test_plots_of_a_classification() -> None:
    found = dict(case_plots(CaseValues(table()), "auc", ["no", "yes"]))
    assert list(found) == ["probability of the true class of each case, test", "ROC curves, test", "calibration, test"]
    assert "inside, yes: AUC 1.000" in found["ROC curves, test"]
    assert "outside" not in found["ROC curves, test"]  # one class has no case
    assert all('role="img"' in svg for svg in found.values())


def test_plots_of_a_segmentation() -> None:
    rows = table().replace({"metric": {"label": "dice"}})
    rows = rows[rows["metric"] == "dice"].assign(value=lambda rows: rows["value"] / 2)
    found = dict(case_plots(CaseValues(rows), "dice", []))
    assert list(found) == ["dice of each case, test"]
    many = pd.concat([rows.assign(site=f"s{number}") for number in range(70)])
    (histogram,) = dict(case_plots(CaseValues(many), "dice", [])).values()
    assert ">cases<" in histogram


def test_no_cases() -> None:
    empty = CaseValues(table().iloc[:0])
    assert not list(case_plots(empty, "dice", []))
    assert not confusion_matrices(empty, [])
