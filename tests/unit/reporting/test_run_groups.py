"""Groups of runs by what differs in their configurations, and the names of the groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from raysim.core.errors import ConfigError
from raysim.reporting.finished_runs import find_runs
from raysim.reporting.run_groups import RunGroup, differing_keys, group_runs, other_differences
from tests.support.finished_runs import write_run

CASES = {"a": [0.5]}


def groups(folder: Path, *keys: str, by: str | None = None) -> list[RunGroup]:
    for number, each in enumerate(keys):
        write_run(folder / f"{number:02}", CASES, each)
    return group_runs(find_runs([folder]), by)


def names(folder: Path, *keys: str, by: str | None = None) -> list[str]:
    return [group.name for group in groups(folder, *keys, by=by)]


def test_seeds_are_repetitions(tmp_path: Path) -> None:
    (group,) = groups(tmp_path, "seed=0", "seed=3 resources.cpus_per_client=2 checkpoint_every=5")
    assert group.name == "fedavg"
    assert [each.seed for each in group.repetitions] == [0, 3]


def test_what_differs_is_the_name(tmp_path: Path) -> None:
    keys = ("algorithm=fedavg", "algorithm=fedprox algorithm.mu=0.1", "algorithm=fedprox algorithm.mu=0.5", "seed=1")
    found = groups(tmp_path, *keys)
    assert [group.name for group in found] == ["fedavg", "fedprox mu=0.1", "fedprox mu=0.5"]
    assert [len(group.runs) for group in found] == [2, 1, 1]


def test_keys_of_other_algorithms_are_no_further_difference(tmp_path: Path) -> None:
    assert names(tmp_path, "algorithm=fedavg", "algorithm=fedprox algorithm.lr=0.5") == ["fedavg", "fedprox"]
    runs = find_runs([tmp_path])
    assert differing_keys(runs) == ["algorithm.name"]
    assert other_differences(runs) == ["algorithm.lr"]


def test_names_are_short_and_unambiguous(tmp_path: Path) -> None:
    keys = ("rounds=3", "rounds=4", "rounds=4 task.data.seed=1 early_stopping=2", "rounds=4 task.network=segresnet")
    assert names(tmp_path, *keys) == [
        "data.seed=0 network=unet rounds=3",
        "data.seed=0 network=unet rounds=4",
        "data.seed=1 network=unet rounds=4 patience=2 min_gain=0.0",
        "data.seed=0 network=segresnet rounds=4",
    ]


def test_one_site_and_all_sites_have_distinct_names(tmp_path: Path) -> None:
    assert names(tmp_path, "cohort=1", "cohort=1.0", "cohort=0.25") == ["size=1", "size=1.0", "size=0.25"]


def test_tables_with_the_same_name_in_two_folders_have_distinct_names(tmp_path: Path) -> None:
    keys = "task=tabular task.data.table=/data/{}/table.csv"
    found = names(tmp_path, keys.format("oslo"), keys.format("rome"))
    assert found == ["table=oslo/table.csv", "table=rome/table.csv"]


def test_groups_by_a_key(tmp_path: Path) -> None:
    keys = ("algorithm=fedavg", "algorithm=fedavg algorithm.lr=0.5", "algorithm=fedprox")
    found = groups(tmp_path, *keys, by="algorithm")
    assert [(group.name, len(group.repetitions)) for group in found] == [("fedavg", 2), ("fedprox", 1)]
    assert group_runs(find_runs([tmp_path]), "algorithm.lr,rounds")[0].name.startswith("lr=")


def test_an_unknown_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--by algorithm.lrr: no run .* \(did you mean 'algorithm.lr'\?\)"):
        groups(tmp_path, "", by="algorithm.lrr")


def test_the_same_run_twice(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"00 and .*02 have the same configuration and seed"):
        groups(tmp_path, "", "seed=1", "")


def test_a_repeated_trial_of_a_search(tmp_path: Path) -> None:
    (tmp_path / "search.yaml").touch()
    found = groups(tmp_path, "rounds=3", "rounds=4", "rounds=3")
    assert [run.path.name for group in found for run in group.runs] == ["00", "01"]


def test_an_older_configuration_without_a_key_is_the_same(tmp_path: Path) -> None:
    write_run(tmp_path / "new", CASES)
    old = write_run(tmp_path / "old", CASES, "seed=1") / "config.yaml"
    old.write_text(old.read_text().replace("early_stopping: null\n", ""))
    assert len(group_runs(find_runs([tmp_path]))) == 1
