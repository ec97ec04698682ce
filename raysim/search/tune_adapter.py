"""`raysim tune`: a search from its words to its tables, on Ray Tune."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from secrets import token_hex
from typing import Any

from ray import tune
from ray.tune import Callback, ResultGrid
from ray.tune.logger import JsonLoggerCallback
from ray.tune.stopper import Stopper

from raysim.core.errors import PlacementError
from raysim.distributed.placement_wait import TrialWait
from raysim.search.results import SearchResults
from raysim.search.samplers import PBTSearchAlgorithm, TuneSearcher
from raysim.search.schedulers import build_scheduler
from raysim.search.search_control import SearchControl
from raysim.search.spec import UNFIT_NODE, SearchSpec
from raysim.search.trackers import build_trackers
from raysim.search.trial_runner import REPLAYING_SCHEDULERS, FederationTrainable
from raysim.search.trial_store import TrialRecord

MAX_PROCESS_LOSSES = 2  # times that a trial whose process was lost goes on from its last checkpoint
TUNE_VARIABLES = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the trials' folders hold it all
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a round without judging has no metric
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # a search goes on from its trials' folders, not from Tune's pickles
    "TUNE_FORCE_TRIAL_CLEANUP_S": "10",  # a round that is under way when all is stopped
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


class SearchStopper(Stopper):
    """Ends the search when its time is up, or when someone asks."""

    def __init__(self, budget: float | None) -> None:
        self.end = None if budget is None else time.monotonic() + budget
        self.asked, self.unfit = False, ""  # what makes a node unfit, if one is, or that there is none

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        """Whether all trials end now; what they have of the present round is lost, if it does not end at once."""
        return self.asked or self.over or bool(self.unfit)

    @property
    def over(self) -> bool:
        """Whether the budget is spent."""
        return self.end is not None and time.monotonic() > self.end


class TuneCallback(Callback):
    """Tells the books, the display and the leader what Tune knows."""

    def __init__(
        self, books: SearchResults, show: Any, leader: SearchControl, halt: SearchStopper, trial_wait: TrialWait
    ) -> None:
        self.books, self.show, self.leader, self.halt, self.trial_wait = books, show, leader, halt, trial_wait
        self.unplayed = set[int]()  # that a node which is no good has taken

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune keeps it for a restore that is never asked for."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A round has ended."""
        if str(result.get("failed")).startswith(UNFIT_NODE):
            self.halt.unfit = result["failed"]
            self.unplayed.add(int(str(trial)))
            return
        if int(str(trial)) in self.books.earlier:
            return
        self.books.add(int(str(trial)), result)
        self.show.round(int(str(trial)), result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has ended: done, or stopped."""
        self._ended(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's process was lost too often."""
        self._ended(trial, _cause(trial))

    def _ended(self, trial: Any, cause: str = "") -> None:
        known = self.books.records[int(str(trial))]
        if known.number not in (*self.books.earlier, *self.unplayed):  # those that only tell again, or have not played
            self.books.end(known.number, cause)
            self.show.ended(known)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Now and then."""
        running = sum(trial.status == "RUNNING" for trial in trials)
        self.show.look(running)
        try:
            if text := self.trial_wait.due_notice(running):
                self.show.say(text)
        except PlacementError as error:
            self.halt.unfit = str(error)
        self.halt.asked |= self.leader.publish(running)


def _cause(trial: Any) -> str:
    lines = [line for line in str(trial.get_error() or "its process was lost").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "its process was lost"


def run_tuner(
    search: SearchSpec,
    books: SearchResults,
    suggester: TuneSearcher,
    bundles: Sequence[Mapping[str, float]],
    show: Any,
    leader: SearchControl,
    *,
    growing: bool,
    total: int,
    max_concurrent: int | None,
    pending: int,
    budget: float | None,
    tracker: str | None,
    logged: bool,
) -> tuple[ResultGrid, SearchStopper]:
    """Run the search on the Ray that is running; `logged` for who reads Tune's result, which is made of its own log."""
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    halt, state = SearchStopper(budget), search.out / "tune"
    shutil.rmtree(state, ignore_errors=True)
    first = search.objectives[0]
    trainable = tune.with_resources(
        tune.with_parameters(FederationTrainable, search=search),
        tune.PlacementGroupFactory([dict(bundle) for bundle in bundles], strategy="PACK"),
    )
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            metric=first.column,
            mode=first.mode,
            search_alg=PBTSearchAlgorithm(suggester) if search.scheduler == "pbt" else suggester,
            scheduler=build_scheduler(search),
            num_samples=total,
            max_concurrent_trials=max_concurrent,
            reuse_actors=True,
            trial_name_creator=lambda trial: str(trial.config["trial"]),
            trial_dirname_creator=lambda trial: f"{trial.config['trial']:04}",
        ),
        run_config=tune.RunConfig(
            name=state.name,
            storage_path=str(search.out),
            stop=halt,
            verbose=0,
            callbacks=[
                TuneCallback(books, show, leader, halt, TrialWait(bundles, growing)),
                *build_trackers(tracker, search),
                *([JsonLoggerCallback()] if logged else []),
            ],
            failure_config=tune.FailureConfig(max_failures=MAX_PROCESS_LOSSES),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=4, checkpoint_at_end=False),
        ),
    )
    # Of trials that wait for room the autoscaler hears; else one is enough, for Optuna is to know what came of others.
    with _tune_variables({"TUNE_MAX_PENDING_TRIALS_PG": str(pending)}), _signals_stop(halt):
        return tuner.fit(), halt


@contextmanager
def _tune_variables(more: Mapping[str, str]) -> Iterator[None]:
    settings = {**TUNE_VARIABLES, **more}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _signals_stop(halt: SearchStopper) -> Iterator[None]:
    """Ctrl-C, or SIGTERM, ends the search in order; the second time, at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: Any) -> None:
        if halt.asked:
            raise KeyboardInterrupt
        halt.asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def resumable_trials(search: SearchSpec, records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The trials of an earlier session that Tune hears of again: those that go on, and, where the scheduler judges a
    trial by others' rounds, those that have ended, which tell again what they told. What failed stays so."""
    again = ("done", "stopped") if search.scheduler in REPLAYING_SCHEDULERS else ()
    known = [record for record in records if record.unfinished or record.status in again]
    return sorted(known, key=lambda record: (record.unfinished, record.number))


def new_session_id() -> str:
    """A name for this process's part of a search."""
    return token_hex(8)
