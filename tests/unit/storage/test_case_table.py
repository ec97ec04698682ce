"""The table cases.parquet: values of the last and the best round, whose means are in all other files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from algorithms.fedsm import FedSM
from algorithms.localonly import LocalOnly
from raysim import task_class
from raysim.core.contracts import CaseName
from raysim.federation.runner import run_federation
from raysim.tasks.classification_metrics import auc
from tests.support.plans import make_plan, plain_fleet
from tests.support.toy_runs import on_local
from tests.unit.federation.test_best_round import stop_after
from tests.unit.federation.test_model_export import synthetic

KEYS = ["round", "site", "role", "split", "metric"]


def names(site: str, split: str) -> list[CaseName]:
    return [CaseName(f"{site}/{split}-{number}.png", f"patient {number}") for number in range(2)]


def run(out: Path, algorithm: Any = None, **keys: Any) -> pd.DataFrame:
    algorithm = algorithm or LocalOnly(lr=0.02)
    named = replace(synthetic(), case_names=names)
    on_local(make_plan(out, named, algorithm, **{"rounds": 3, "metric": "inside/val/dice"} | keys))
    return pd.read_parquet(out / "cases.parquet")


def assert_means(out: Path) -> None:
    """The scores in all tables are means of the values by case."""
    cases, sites = pd.read_parquet(out / "cases.parquet"), pd.read_parquet(out / "sites.parquet")
    means = cases.groupby(KEYS)["value"].agg(["mean", "size"])
    expected = sites[sites["split"].isin(["val", "test"])].set_index(KEYS)["value"]
    expected = expected[expected.index.isin(means.index)]
    assert len(expected) == len(means) > 0
    np.testing.assert_allclose(means["mean"].loc[expected.index], expected, rtol=1e-12)
    rows = pd.read_parquet(out / "rounds.parquet").set_index("round")
    summary = json.loads((out / "summary.json").read_text())
    for (number, role, split, metric), group in means.groupby(["round", "role", "split", "metric"]):
        name = f"{role}/{split}/{metric}"
        found = {"mean": group["mean"].mean(), "weighted": np.average(group["mean"], weights=group["size"])}
        found["worst"] = group["mean"].min()
        assert rows.loc[number, [f"{name}/{kind}" for kind in found]].tolist() == pytest.approx([*found.values()])
        for number_of, metrics in (
            (summary["evaluated_round"], summary["metrics"]),
            (summary["best"]["round"], summary["best"]["metrics"]),
        ):
            assert number_of != number or metrics[name] == pytest.approx(found)


def test_all_scores_are_means_of_this_table(tmp_path: Path) -> None:
    cases = run(tmp_path, rounds=4, evaluate_every=2)
    assert_means(tmp_path)
    assert set(cases["metric"]) == {"dice"}  # LocalOnly has no global model
    assert set(cases["predictor"]) == {"own"}
    one = cases[(cases["site"] == "site-01") & (cases["split"] == "test") & cases["last"]]
    assert one[["case", "image", "patient"]].to_numpy().tolist() == [
        [0, "site-01/test-0.png", "patient 0"],
        [1, "site-01/test-1.png", "patient 1"],
    ]


def test_several_predictors_of_a_site(tmp_path: Path) -> None:
    cases = run(tmp_path, FedSM(selector="small"), rounds=1)
    assert_means(tmp_path)
    answered = cases.drop_duplicates(["metric", "predictor"])[["metric", "predictor"]].to_numpy().tolist()
    assert answered == [["dice", "RoutedPredictor"], ["dice@global", "global"], ["dice@personal", "own"]]
    assert cases["best"].all()
    assert cases["last"].all()


def test_names_are_hashed_on_request(tmp_path: Path) -> None:
    plain, hashed = run(tmp_path / "plain", rounds=1), run(tmp_path / "hashed", rounds=1, anonymous_cases=True)
    for column in ("image", "patient"):
        expected = [hashlib.sha256(name.encode()).hexdigest()[:16] for name in plain[column]]
        assert hashed[column].tolist() == expected
    assert hashed.drop(columns=["image", "patient"]).equals(plain.drop(columns=["image", "patient"]))


@pytest.mark.parametrize("every", [1, 3])
def test_a_resumed_run_has_the_same_table(tmp_path: Path, every: int) -> None:
    keys = {"rounds": 4, "evaluate_every": 2, "checkpoint_every": every}
    undisturbed = run(tmp_path / "undisturbed", **keys)
    named = replace(synthetic(), case_names=names)
    plan = make_plan(tmp_path / "run", named, LocalOnly(lr=0.02), metric="inside/val/dice", **keys)
    stop_after(run_federation(plan, plain_fleet(plan)), 3)
    assert set(pd.read_parquet(tmp_path / "run" / "cases.parquet")["round"]) == {2}
    stop_after(run_federation(replace(plan, resume=True), plain_fleet(plan)), 9)
    assert pd.read_parquet(tmp_path / "run" / "cases.parquet").equals(undisturbed)


def test_cases_of_a_table(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = [
        {
            "site": site,
            "split": split,
            "patient": f"{site}-{split}-{number}",
            "age": random.normal(),
            "label": number % 2,
        }
        for site in ("a", "b")
        for split in ("train", "val", "test")
        for number in range(6)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "table.csv", index=False)
    built = task_class("tabular")
    data_class = type(built().data)
    metrics = ("auc", "accuracy", "brier")
    task = built(data=data_class(table=str(tmp_path / "table.csv"), cache=str(tmp_path)), metrics=metrics).build()
    on_local(make_plan(tmp_path / "run", task, LocalOnly(), rounds=2, metric="inside/val/auc"))
    cases = pd.read_parquet(tmp_path / "run" / "cases.parquet")
    assert set(cases["metric"]) == {"accuracy", "brier", "label", "logit_0", "logit_1"}
    named = cases[cases["metric"].isin(["accuracy", "brier"])]
    sites = pd.read_parquet(tmp_path / "run" / "sites.parquet").set_index(KEYS)["value"]
    means = named.groupby(KEYS)["value"].mean()
    np.testing.assert_allclose(means, sites.loc[means.index], rtol=1e-12)
    labels = cases[cases["metric"] == "label"]
    where = labels["site"] + "-" + labels["split"]
    assert labels["patient"].str[:-2].tolist() == where.tolist()
    assert (labels["patient"].str[-1].astype(int) % 2 == labels["value"]).all()  # rows are sorted by age
    assert cases["image"].isna().all()
    # The metrics that are not means can be computed from the logits.
    for key, group in cases[cases["split"] == "test"].groupby(KEYS[:4]):
        wide = group.pivot(index="case", columns="metric", values="value")
        found = auc(wide[["logit_0", "logit_1"]].to_numpy(), wide["label"].to_numpy().astype(int))
        assert found == pytest.approx(sites[(*key, "auc")], rel=1e-12)
