"""The adapter to Ray Tune: runs a planned search as a Tuner, and forwards its events to results and console."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune import Callback, ResultGrid
from ray.tune.logger import JsonLoggerCallback
from ray.tune.stopper import Stopper

from raysim.core.errors import PlacementError
from raysim.distributed.placement_wait import TrialWait
from raysim.search.live_report import LiveReport
from raysim.search.options import OPTUNA_SAMPLERS, SearchOptions
from raysim.search.results import SearchResults
from raysim.search.schedulers import SCHEDULERS
from raysim.search.search_control import SearchControl
from raysim.search.trainable import FederationTrainable
from raysim.search.trial_resources import TrialPlacement
from raysim.search.trial_tracking import TrialTracking
from raysim.search.tune_compat import (
    PBTSearchAlgorithm,
    error_summary,
    running_trials,
    silence_tune_loggers,
    trial_number,
    tune_environment,
)
from raysim.search.tune_searcher import TRIAL_NUMBER, TuneSearcher

if TYPE_CHECKING:
    from raysim.reporting.search_console import SearchConsole

MAX_PROCESS_LOSSES = 2  # times that a trial restarts from its last checkpoint after its process was lost


class SearchStopper(Stopper):
    """Ends the search when its budget is spent, on request, or when its trials cannot run.

    The budget, in seconds, counts from the start of the first trial.
    """

    def __init__(self, budget: float | None) -> None:
        self.budget = budget
        self.deadline: float | None = None
        self.stop_requested = False
        self.cannot_run = ""  # the reason why a node is unfit, or why no trial starts

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        """Whether all trials end now. A round in progress is lost unless it ends within seconds."""
        return self.stop_requested or self.budget_spent or bool(self.cannot_run)

    def start_budget(self) -> None:
        """Start the budget, when the first trial runs; later calls do nothing."""
        if self.budget is not None and self.deadline is None:
            self.deadline = time.monotonic() + self.budget

    @property
    def budget_spent(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline


class TuneCallback(Callback):
    """Forwards Tune's events to the results, the console and the control actor."""

    def __init__(
        self,
        results: SearchResults,
        console: SearchConsole,
        control: SearchControl,
        stopper: SearchStopper,
        trial_wait: TrialWait,
    ) -> None:
        self.results, self.console, self.control = results, console, control
        self.stopper, self.trial_wait, self.report = stopper, trial_wait, LiveReport(results)
        self.rejected = set[int]()  # trials that were placed on an unfit node and did not run

    def __getstate__(self) -> dict[str, Any]:
        """Empty: Tune would store this object for a restore, which a search does not use."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial has a process."""
        self.results.start_rounds(trial_number(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A round of the trial has ended, or the trial has failed."""
        number = trial_number(trial)
        if result.get("unfit_node"):
            self.stopper.cannot_run = result["cause"]
            self.rejected.add(number)
        elif number not in self.results.ended_earlier:
            self.results.add_round(number, result)
            self.console.on_round(number, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial has ended: done, or stopped."""
        self._end(trial_number(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial's process was lost too often."""
        self._end(trial_number(trial), error_summary(trial))

    def _end(self, number: int, cause: str = "") -> None:
        # A trial that ended in an earlier session only repeats the reports of its rounds.
        if number not in self.results.ended_earlier and number not in self.rejected:
            self.results.end_trial(number, cause)
            self.console.on_trial_end(self.results.records[number])

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Called by Tune after each step of its event loop, several times a second."""
        running = running_trials(trials)
        if running:
            self.stopper.start_budget()
        self.console.refresh(running)
        self.report.update()
        try:
            if text := self.trial_wait.due_notice(running):
                self.console.say(text)
        except PlacementError as error:
            self.stopper.cannot_run = str(error)
        self.stopper.stop_requested |= self.control.publish(running)


def run_tuner(
    placement: TrialPlacement,
    options: SearchOptions,
    searcher: TuneSearcher,
    callback: TuneCallback,
    tracking: Sequence[TrialTracking],
    *,
    keep_tune_log: bool,
) -> ResultGrid:
    """Run the search on the connected Ray until its trials have ended or its stopper ends it.

    The result is complete only with `keep_tune_log`, because Tune reads it from a log that raysim does not need.
    """
    silence_tune_loggers()
    spec, stopper = placement.spec, callback.stopper
    directory = spec.out / "tune"
    shutil.rmtree(directory, ignore_errors=True)
    trainable = tune.with_resources(
        tune.with_parameters(FederationTrainable, spec=spec),
        tune.PlacementGroupFactory([dict(bundle) for bundle in placement.bundles], strategy="PACK"),
    )
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            metric=spec.objectives[0].column,
            mode=spec.objectives[0].mode,
            search_alg=PBTSearchAlgorithm(searcher) if SCHEDULERS[spec.scheduler].transfers_state else searcher,
            scheduler=SCHEDULERS[spec.scheduler].build(spec),
            num_samples=searcher.trial_count,
            max_concurrent_trials=options.max_concurrent,
            reuse_actors=True,
            trial_name_creator=lambda trial: str(trial.config[TRIAL_NUMBER]),  # read by tune_compat.trial_number
            trial_dirname_creator=lambda trial: f"{trial.config[TRIAL_NUMBER]:04}",
        ),
        run_config=tune.RunConfig(
            name=directory.name,
            storage_path=str(spec.out),
            stop=stopper,
            verbose=0,
            callbacks=[
                callback,
                *tracking,
                *([JsonLoggerCallback()] if keep_tune_log else []),
            ],
            failure_config=tune.FailureConfig(max_failures=MAX_PROCESS_LOSSES),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=4, checkpoint_at_end=False),
        ),
    )
    # Trials are pending until their process has started: those of all slots, so that they start together, and on a
    # cluster that grows, because the autoscaler adds nodes for pending trials. But Optuna samples a trial before it is
    # pending, and should have the results of the others.
    learns = options.searcher in OPTUNA_SAMPLERS
    pending = 1 if learns and not placement.growing else placement.concurrent_trials
    with tune_environment(pending), _signals_stop(stopper):
        return tuner.fit()


@contextmanager
def _signals_stop(stopper: SearchStopper) -> Iterator[None]:
    """Within the block, the first SIGINT or SIGTERM ends the search cleanly, the second one at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def request_stop(number: int, frame: Any) -> None:
        if stopper.stop_requested:
            raise KeyboardInterrupt
        stopper.stop_requested = True

    previous = {number: signal.signal(number, request_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
