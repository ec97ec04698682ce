"""The private and fragile parts of Ray Tune that raysim depends on: each works as expected."""

from __future__ import annotations

import logging
import os

from ray.tune import constants
from ray.tune.experiment import Trial
from ray.tune.schedulers import HyperBandScheduler, MedianStoppingRule
from ray.tune.search import Searcher

from raysim.search import tune_compat

SETTINGS = {"time_attr": "round", "metric": "score", "mode": "max"}


def trial(number: int = 1) -> Trial:
    """A trial of Tune that was never started."""
    return Trial("raysim", stub=True, config={}, trial_name_creator=lambda _: str(number))


class NoTrials(Searcher):
    """A searcher without trials."""

    def suggest(self, trial_id: str) -> str:
        return Searcher.FINISHED


def test_a_bracket_of_hyperband_is_processed_again_after_a_halving():
    for scheduler, stuck in ((HyperBandScheduler, True), (tune_compat.FailureTolerantHyperBand, False)):
        hyperband = scheduler(max_t=9, reduction_factor=3, stop_last_trials=False, **SETTINGS)
        one = trial()
        hyperband.on_trial_add(None, one)
        one.set_status(Trial.RUNNING)
        bracket = hyperband._trial_info[one][0]
        bracket.update_trial_stats(one, {"round": bracket._cumul_r, "score": 0.5})
        hyperband._process_bracket(None, bracket)
        assert bracket.is_being_processed is stuck


def test_median_stopping_ignores_a_last_result_without_the_metric():
    one, failed = trial(), {"round": 3, "status": "failed", "cause": "cause"}
    settings = {name: value for name, value in SETTINGS.items() if name != "time_attr"}
    tolerant = tune_compat.FailureTolerantMedian("score", time_attr="round", **settings)
    tolerant.on_trial_complete(None, one, failed)
    assert one not in tolerant._results
    tolerant.on_trial_complete(None, one, failed | {"score": 0.5})
    assert len(tolerant._results[one]) == 1
    plain = MedianStoppingRule(**SETTINGS)
    plain.on_trial_complete(None, one, failed)
    assert len(plain._results[one]) == 1  # the cause of the KeyError


def test_the_searcher_of_pbt_ends_with_its_trials():
    search = tune_compat.PBTSearchAlgorithm(NoTrials())
    assert search.total_samples == 0
    assert search.is_finished()
    search.generator._total_samples = 1
    assert not search.is_finished()
    search.set_finished()
    assert search.is_finished()


def test_the_number_of_a_trial_is_its_name():
    one = trial(12)
    one.config["trial"] = 3  # as PBT copies it from another trial
    assert tune_compat.trial_number(one) == 12


def test_trials_in_a_process_are_counted():
    trials = [trial(number) for number in (1, 2, 3)]
    trials[1].set_status(Trial.RUNNING)
    trials[2].set_status(Trial.TERMINATED)
    assert tune_compat.running_trials(trials) == 1


def test_the_error_of_a_lost_process_is_its_last_line():
    class Lost:
        def get_error(self) -> str:
            return "Traceback\n  File\nActorDiedError: its node was lost\n\n"

    assert callable(Trial.get_error)
    assert tune_compat.error_summary(Lost()) == "ActorDiedError: its node was lost"
    assert tune_compat.error_summary(trial()) == "its process was lost"


def test_tune_knows_its_environment_variables(monkeypatch):
    known = {*constants.TUNE_ENV_VARS, "RAY_AIR_NEW_OUTPUT", "RAY_CHDIR_TO_TRIAL_DIR"}
    assert {*tune_compat.TUNE_VARIABLES, tune_compat.PENDING_TRIALS_VARIABLE} <= known
    monkeypatch.setenv("TUNE_PRINT_ALL_TRIAL_ERRORS", "1")
    monkeypatch.delenv(tune_compat.PENDING_TRIALS_VARIABLE, raising=False)
    with tune_compat.tune_environment(3):
        assert os.environ["TUNE_PRINT_ALL_TRIAL_ERRORS"] == "0"
        assert os.environ[tune_compat.PENDING_TRIALS_VARIABLE] == "3"
    assert os.environ["TUNE_PRINT_ALL_TRIAL_ERRORS"] == "1"
    assert tune_compat.PENDING_TRIALS_VARIABLE not in os.environ


def test_tune_s_loggers_are_silent():
    levels = {name: logging.getLogger(name).level for name in ("ray.tune", "ray.train")}
    try:
        tune_compat.silence_tune_loggers()
        assert all(not logging.getLogger(f"{name}.child").isEnabledFor(logging.ERROR) for name in levels)
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
