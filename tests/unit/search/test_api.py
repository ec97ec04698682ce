"""Searches that are prepared and not started: refusals, held-out sites, and the estimate of a dry run."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from raysim.config.merge import parse_pairs
from raysim.config.resolve import resolve
from raysim.core.errors import ConfigError
from raysim.reporting.search_console import SearchConsole
from raysim.reporting.terminal import Terminal
from raysim.search.api import tune as search_from_python
from raysim.search.build_spec import build_search_spec
from raysim.search.dry_run import MeasuredTimes, measure_round, print_dry_run
from raysim.search.request import build_request
from raysim.search.space import Space, from_cli
from raysim.search.trial_resources import TrialPlacement
from tests.support.searches import searched


@pytest.mark.parametrize(
    ("space", "match"),
    [
        ("task.network=choice(unet,nonsense)", "nonsense"),
        ("network.foo=choice(1,2)", "foo"),
        ("network.channels=choice([4,8],[4])", "task.network"),
        ("task.loss=choice(dice,nonsense)", "nonsense"),
    ],
)
def test_a_bound_that_is_invalid_for_the_task_is_refused_before_the_first_trial(tmp_path, space, match):
    with pytest.raises(ConfigError, match=rf"the search space: \S+ is choice\(.*?\): .*{match}"):
        searched(tmp_path, space=[space])


def test_keys_of_the_network_are_tried_together(tmp_path):
    # Checked alone, the filters would be a key of the default network, which has no such key.
    space = ["task.network=choice(segresnet)", "network.init_filters=choice(8)", "task.batch_size=choice(2,4)"]
    assert searched(tmp_path, space=space)
    # Values that are valid only with one value of another key, and with none of the base.
    space = ["network.channels=choice([4,8,16],[4,8])", "network.strides=choice([2],[2,2])"]
    space += ["network.norm=choice(batch,instance)", "network.act=choice(relu,prelu,elu,swish)"]
    assert searched(tmp_path, space=space)


def held_out(folder: Path, metric: str | None = None, *arguments: str):
    """Leave-one-out over the cameras of a table of two hospitals, prepared and not started."""
    table = ["site,split,label,camera,a,b"]
    for camera, site in (("c1", "x"), ("c1", "y"), ("c2", "x"), ("c3", "y"), ("c1", "z")):
        splits = enumerate(("train", "train", "test", "val") * 2)
        table += [f"{site},{split},{i % 2},{camera},{i % 2 + 0.1 * i},{i}" for i, split in splits]
    (folder / "table.csv").write_text("\n".join(table))
    given = ["task=tabular", f"task.data.table={folder / 'table.csv'}", "rounds=1", "task.data.partition.by=camera"]
    given += [f"task.data.cache={folder / 'cache'}", "task.data.outside=[z]", *arguments]
    options = {"holdout": "each"} | ({"metric": metric} if metric else {})
    return build_search_spec(
        build_request(Space(), {}, parse_pairs(given), options), folder, SearchConsole(Terminal(quiet=True))
    )


def test_sites_that_a_partition_makes_are_held_out(tmp_path):
    search = held_out(tmp_path)
    assert search.space.grid() == [{"holdout": camera} for camera in ("c1", "c2", "c3")]
    for values in search.space.grid():
        (variant,) = search.variants_of(values).values()
        built = search.config(values, variant).task.build(None)
        assert built.outside == (values["holdout"],)
        assert set(built.inside) == {"c1", "c2", "c3"} - {values["holdout"]}  # z, an outside site, is excluded
        assert built.sizes["c1"]["train"] == 8


def test_a_site_that_is_excluded_is_not_held_out(tmp_path):
    parted = held_out(tmp_path, None, "task.data.exclude_sites=[c3]")
    assert parted.space.grid() == [{"holdout": "c1"}, {"holdout": "c2"}]
    with pytest.raises(ConfigError, match=r"unknown site in task.data.exclude_sites: 'c4'"):
        held_out(tmp_path, None, "task.data.exclude_sites=[c4]")


@pytest.mark.parametrize(
    ("metric", "arguments"), [("inside/val/auc", []), (None, ["metric=inside/val/auc"])], ids=("option", "key")
)
def test_a_metric_of_training_sites_is_refused_with_held_out_sites(tmp_path, metric, arguments):
    with pytest.raises(ConfigError, match=r"evaluates the sites that train.* use --metric outside or outside/"):
        held_out(tmp_path, metric, *arguments)


def test_held_out_sites_are_evaluated_by_the_outside_metric(tmp_path):
    assert held_out(tmp_path, "outside").objectives == held_out(tmp_path).objectives


def test_a_node_without_the_algorithm_s_module_is_unfit(tmp_path):
    search = searched(tmp_path)
    (tmp_path / "search.yaml").touch()
    assert search.node_incompatibility() == ""
    missing = replace(search, base={"algorithm": "nowhere.at_all:Mine"}).node_incompatibility()
    assert re.match(r"a node cannot run trials: \S+ lacks the task or an algorithm of the search: .*nowhere", missing)
    space = Space(from_cli(["algorithm=choice(fedavg,'nowhere:Mine')"]))
    assert "nowhere" in replace(search, space=space).node_incompatibility()


def test_a_space_in_a_file_keeps_its_task_from_python(tmp_path, monkeypatch):
    path = tmp_path / "space.py"
    monkeypatch.setattr("raysim.search.api.start_search", lambda found, *_, **__: found)
    path.write_text(
        "from ray import tune\nSPACE = {'task.name': 'tabular', 'algorithm.lr': tune.choice([0.1]), 'rounds': 3}"
    )
    assert resolve(search_from_python(str(path)).base).task.name == "tabular"
    assert resolve(search_from_python(str(path), "synthetic").base).task.name == "synthetic"


def test_the_time_that_a_search_takes_counts_its_start_rounds_and_client_actors(tmp_path, capsys):
    search = searched(tmp_path, "evaluate_every=5")
    assert measure_round(search, {"algorithm.lr": 0.01}) > 0
    assert not list(tmp_path.iterdir())
    need = TrialPlacement(search, [{}, {"CPU": 1.0}, {"CPU": 1.0}], 2, "each with 2 client actors")
    times = MeasuredTimes(round=2.0, start=10.0, end=1.0)
    print_dry_run(need, [{"rounds": 3}, {"rounds": 5}], times, SearchConsole(Terminal()))
    output = capsys.readouterr().out
    assert "2 trials of up to 5 rounds; each with 2 client actors" in output
    # 8 rounds of 2 s, two trials at once, two client actors in each
    assert (
        "estimated time: 15 s (10 s until the first round, 4 s for the rounds, 1 s for the report and the shutdown of "
        "Ray)" in output
    )
