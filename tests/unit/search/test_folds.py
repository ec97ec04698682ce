"""`--folds`: every trial runs on all folds, its row is their mean, and `compare` pools the cases of the folds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from raysim.config.merge import parse_pairs
from raysim.core.errors import ConfigError
from raysim.reporting.comparison import CompareOptions, compare
from raysim.reporting.search_console import SearchConsole
from raysim.reporting.terminal import Terminal
from raysim.search.build_spec import build_search_spec
from raysim.search.request import build_request
from raysim.search.space import Space, from_cli
from raysim.search.trial_cache import TrialCache
from raysim.search.trial_runner import TrialRounds
from raysim.search.trial_store import TrialRecord, TrialStatus
from raysim.search.trial_tables import write_tables


def spec_of(folder: Path, task: str, pairs: list[str]) -> Any:
    request = build_request(
        Space(from_cli(["algorithm.lr=loguniform(1e-4,1e-2)"])),
        {"task": {"name": task}},
        parse_pairs([*pairs, "backend=local", "rounds=1"]),
        {"folds": 2},
    )
    return build_search_spec(request, folder / "search", SearchConsole(Terminal(quiet=True)))


def build(folder: Path, *pairs: str) -> Any:
    random = np.random.default_rng(0)
    rows = [
        {"site": site, "split": split, "x": random.normal(), "label": number % 2}
        for site in "ab"
        for split in ("train", "val", "test")
        for number in range(4)
    ]
    table = pd.DataFrame(rows).assign(patient=[str(number) for number in range(24)])
    table.to_csv(folder / "table.csv", index=False)
    data = [f"task.data.table={folder / 'table.csv'}", f"task.data.cache={folder / 'cache'}"]
    return spec_of(folder, "tabular", [*data, *pairs])


def test_a_trial_runs_on_all_folds(tmp_path: Path) -> None:
    spec = build(tmp_path)
    spec.out.mkdir()
    (spec.out / "search.yaml").touch()
    values = {"algorithm.lr": 0.01}
    trial = TrialRounds(spec, 1, values, TrialCache(spec))
    row = trial.step()
    assert set(row["digests"]) == {"fold-0", "fold-1"}
    runs = [pd.read_parquet(spec.out / "trials" / "0001" / f"fold-{fold}" / "rounds.parquet") for fold in range(2)]
    for column in ("inside/test/accuracy/mean", "inside/val/accuracy/worst"):
        assert row[column] == pytest.approx(np.mean([run[column].iloc[-1] for run in runs]))
    found = compare([spec.out], CompareOptions(metric="accuracy"))
    assert found.cases == 24
    assert not found.notes
    record = TrialRecord(1, values, TrialStatus.DONE, 1, 1.0, row, {}, row["digests"])
    write_tables(spec, [record], [record], [])
    best = (spec.out / "best.yaml").read_text()
    assert "# Evaluated by cross-validation; this run has seed 0 and the splits of the table." in best
    assert "folds: null" in best


def test_folds_given_twice(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--folds 2 contradicts task.data.folds=3; remove one of them"):
        build(tmp_path, "task.data.folds=3", "task.data.fold=0")


def test_a_task_without_a_table(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--folds: only the rows of a table can be divided into folds"):
        spec_of(tmp_path, "synthetic", ["task.data.size=[16,16]"])
