"""The samplers of Optuna: their values, what they learn from, and the journal for the dashboard."""

from __future__ import annotations

import optuna
import pytest
from ray import tune

from raysim.core.errors import ConfigError
from raysim.search.objectives import Objective
from raysim.search.options import SearchOptions
from raysim.search.optuna_sampler import OptunaSampler
from raysim.search.request import SearchRequest, build_request, write_request
from raysim.search.space import Space, from_cli, from_mapping
from raysim.search.trial_store import TrialRecord, TrialStatus

DICE = Objective("dice", "higher")
TPE = SearchOptions(searcher="tpe")
SPACE = Space(from_cli(["a=uniform(0,1)", "b=choice(x,y)", "c=lograndint(1,9)"]))


def best_of(sampler: OptunaSampler, trials: int) -> float:
    """The best value of this many trials of a function with its maximum 0 at a=0.3, b=x, c=4."""
    found = []
    for number in range(1, trials + 1):
        values = sampler.sample(number)
        value = -((values["a"] - 0.3) ** 2) - (values["b"] == "y") - 0.01 * (values["c"] - 4) ** 2
        sampler.on_trial_end(number, {"dice": value}, TrialStatus.DONE)
        found.append(value)
    return max(found)


def test_optuna_takes_a_weight_of_0_as_the_lower_bound():
    space = from_mapping({"w": tune.loguniform(0.1, 1000)}, [{"w": 0.0}, {"w": 10.0}])
    objectives = [DICE]
    sampler = OptunaSampler(TPE, space, 0, objectives, [])
    assert [sampler.sample(number)["w"] for number in (1, 2)] == [0.0, 10.0]
    assert 0.1 <= sampler.sample(3)["w"] <= 1000
    assert [trial.params["w"] for trial in sampler.study.trials[:2]] == [0.1, 10.0]
    record = TrialRecord(1, {"w": 0.0}, TrialStatus.DONE, 1, last={"dice": 0.5})
    resumed = OptunaSampler(TPE, space, 0, objectives, [record])
    assert [(trial.params["w"], trial.value) for trial in resumed.study.trials] == [(0.1, 0.5)]


def test_a_search_that_is_resumed_in_its_first_trial_does_not_sample_it_again():
    first = OptunaSampler(TPE, SPACE, 0, [DICE], []).sample(1)
    resumed = OptunaSampler(TPE, SPACE, 0, [DICE], [TrialRecord(1, first)])
    resumed.resume_trial(1, first)
    assert resumed.sample(2)["a"] != first["a"]


@pytest.mark.parametrize("name", ["tpe", pytest.param("gp", marks=pytest.mark.slow), "nsgaii"])
def test_a_sampler_learns_from_trials_and_repeats_its_samples(name):
    options = SearchOptions(searcher=name, trials=16)
    one, two = (OptunaSampler(options, SPACE, 0, [DICE], []) for _ in range(2))
    assert best_of(one, 16) == best_of(two, 16) > -0.1


def test_cma_es_needs_its_package():
    pytest.importorskip("cmaes")
    assert best_of(OptunaSampler(SearchOptions(searcher="cmaes", trials=16), SPACE, 0, [DICE], []), 16) > -0.5


def test_without_the_package_cma_es_is_refused(monkeypatch):
    monkeypatch.setattr("raysim.search.request.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="--searcher cmaes needs the package cmaes: pip install cmaes"):
        build_request(Space(from_cli(["algorithm.lr=uniform(0.1,1)"])), {}, {}, {"searcher": "cmaes"})


def test_the_random_trials_before_the_model_are_a_quarter_of_all():
    for trials, startup in ((8, 4), (32, 8), (200, 10)):
        options = SearchOptions(searcher="tpe", trials=trials)
        assert OptunaSampler(options, SPACE, 0, [DICE], []).study.sampler._n_startup_trials == startup


def test_the_journal_can_be_opened_and_is_rewritten_when_a_search_continues(tmp_path):
    journal = tmp_path / "tune-001" / "optuna.log"
    journal.parent.mkdir()
    sampler = OptunaSampler(TPE, SPACE, 0, [DICE], [], journal)
    best_of(sampler, 3)
    sampler.sample(4)  # is running when the search is killed

    def opened() -> optuna.Study:
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))
        return optuna.load_study(study_name="tune-001", storage=storage)

    assert [trial.user_attrs["trial"] for trial in opened().trials] == [1, 2, 3, 4]
    assert opened().metric_names == ["dice"]
    assert opened().trials[0].params == sampler.study.trials[0].params
    record = TrialRecord(1, {"a": 0.5, "b": "x", "c": 2}, TrialStatus.DONE, 1, last={"dice": 0.7})
    stopped = TrialRecord(2, {"a": 0.9, "b": "y", "c": 8}, TrialStatus.STOPPED, 3, last={"dice": 0.1})
    OptunaSampler(TPE, SPACE, 0, [DICE], [record, stopped], journal)
    first, second = opened().trials
    assert (first.value, first.params, first.state.name) == (0.7, {"a": 0.5, "b": "x", "c": 2}, "COMPLETE")
    assert (second.state.name, second.intermediate_values) == ("PRUNED", {3: 0.1})  # ASHA with TPE learns from it


def test_the_values_of_a_stopped_trial_are_reported_by_round():
    sampler = OptunaSampler(TPE, SPACE, 0, [DICE], [])
    sampler.sample(1)
    sampler.on_trial_result(1, {"round": 1, "dice": 0.2})
    sampler.on_trial_result(1, {"round": 3, "dice": 0.4})
    sampler.on_trial_end(1, {"round": 3, "dice": 0.4}, TrialStatus.STOPPED)  # it was paused
    sampler.sample(2)
    sampler.on_trial_end(2, {"round": 1, "dice": 0.3}, TrialStatus.STOPPED)
    one, two = sampler.study.trials
    assert (one.state.name, one.intermediate_values) == ("PRUNED", {1: 0.2, 3: 0.4})
    assert (two.state.name, two.intermediate_values) == ("PRUNED", {1: 0.3})


def test_an_earlier_search_with_other_keys_or_ranges_is_refused(tmp_path):
    write_request(tmp_path, SearchRequest({}, Space(from_cli(["algorithm.lr=uniform(0.1,1)"])), TPE))
    options = {"searcher": "tpe", "warm_start": str(tmp_path)}
    same = Space(from_cli(["algorithm.lr=uniform(0.1,1)"]))
    assert build_request(same, {}, {}, options).options.warm_start == str(tmp_path)
    other = Space(from_cli(["algorithm.lr=uniform(0.1,2)"]))
    with pytest.raises(ConfigError, match=r"lr is uniform\(0.1, 1\) in that search and uniform\(0.1, 2\) in this one"):
        build_request(other, {}, {}, options)
    more = Space(from_cli(["algorithm.lr=uniform(0.1,1)", "algorithm.epochs=choice(1,2)"]))
    with pytest.raises(ConfigError, match=r"epochs is not searched in that search and choice\(1, 2\) in this one"):
        build_request(more, {}, {}, options)
