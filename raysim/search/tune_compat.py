"""Uses of private and fragile parts of Ray Tune, each in one place and with a test. Checked against Ray 2.60.

Public features of Ray Tune are used where they are needed. This file contains what a new version of Ray may break.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import HyperBandScheduler, MedianStoppingRule
from ray.tune.search import SearchAlgorithm, Searcher, SearchGenerator

TUNE_VARIABLES = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the trials' directories hold all results
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a round without evaluation has no metric
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the search handles signals
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # a search resumes from its trials' directories, not from Tune's pickles
    "TUNE_FORCE_TRIAL_CLEANUP_S": "10",  # a running round does not delay the end of a search
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the console prints them
    "RAY_AIR_NEW_OUTPUT": "0",  # only the console prints, not Tune
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths start in the directory of the command
}
PENDING_TRIALS_VARIABLE = "TUNE_MAX_PENDING_TRIALS_PG"  # trials for which Tune requests resources at a time


class FailureTolerantHyperBand(HyperBandScheduler):
    """HyperBand that continues when a trial fails.

    Tune sets `is_being_processed` of a bracket at its first halving and never resets it. While it is set, the removal
    of a failed trial does not process the bracket, and the other trials wait forever.
    """

    def _process_bracket(self, tune_controller: Any, bracket: Any) -> str:
        action: str = super()._process_bracket(tune_controller, bracket)
        bracket.is_being_processed = False
        return action


class FailureTolerantMedian(MedianStoppingRule):
    """Median stopping that ignores a trial's last result if it lacks the metric.

    Tune adds the result of every ended trial. The result of a failed trial lacks the metric, and raises KeyError.
    """

    def __init__(self, column: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.column = column

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if self.column in result:
            super().on_trial_complete(tune_controller, trial, result)


class PBTSearchAlgorithm(SearchAlgorithm):
    """The search algorithm for PBT, which rejects Tune's SearchGenerator because PBT changes sampled values.

    The samples of this package do not depend on results, so the change is harmless.
    """

    def __init__(self, searcher: Searcher) -> None:
        self.generator = SearchGenerator(searcher)

    @property
    def total_samples(self) -> int:
        """The number of trials."""
        return int(self.generator.total_samples)

    def set_search_properties(self, metric: str | None, mode: str | None, config: Any, **spec: Any) -> bool:
        """Accept: the searcher was configured by its constructor."""
        return True

    def add_configurations(self, experiments: Any) -> None:
        self.generator.add_configurations(experiments)

    def next_trial(self) -> Any:
        return self.generator.next_trial()

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        self.generator.on_trial_complete(trial_id, result, error)

    def is_finished(self) -> bool:
        return bool(self.generator.is_finished()) or bool(super().is_finished())

    def save_to_dir(self, dirpath: str, **kwargs: Any) -> None:
        """Do nothing: a search resumes from its trials' directories."""


def trial_number(trial: Any) -> int:
    """The number of a trial, from its name, which `trial_name_creator` sets and only `str` returns.

    The configuration is not used, because PBT copies that of another trial with its number.
    """
    return int(str(trial))


def running_trials(trials: Sequence[Any]) -> int:
    """The number of trials that run in a process now; Tune keeps the status as text."""
    return sum(trial.status == Trial.RUNNING for trial in trials)


def error_summary(trial: Any) -> str:
    """The last line of the traceback that Tune keeps of a trial whose process was lost."""
    lines = [line for line in str(trial.get_error() or "").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "its process was lost"


def silence_tune_loggers() -> None:
    """Suppress the log lines of Tune and Train in this process; the console reports trials and failures."""
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def tune_environment(max_pending_trials: int) -> Iterator[None]:
    """Within the block, the environment variables that configure Tune are set. Tune has no arguments for them."""
    settings = {**TUNE_VARIABLES, PENDING_TRIALS_VARIABLE: str(max_pending_trials)}
    previous = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in previous.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
