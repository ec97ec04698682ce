"""The order of the trials that Ray Tune requests: first those of an earlier session that continue, then new ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.tune.search import Searcher

from raysim.search.samplers import Sampler
from raysim.search.schedulers import SCHEDULERS
from raysim.search.spec import SearchSpec
from raysim.search.trial_store import TrialRecord, TrialStatus

TRIAL_NUMBER = "trial"  # the key of Tune's configuration that holds the trial's number


def resumable_trials(spec: SearchSpec, records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The trials of an earlier session that are started again: the unfinished ones.

    If the scheduler compares trials by all their rounds, the ended trials are included. They start first and report
    their rounds again. Failed trials are not repeated.
    """
    replays = SCHEDULERS[spec.scheduler].replays_rounds
    resumable = [record for record in records if record.unfinished or (replays and not record.failed)]
    return sorted(resumable, key=lambda record: (record.unfinished, record.number))


def new_trial_numbers(spec: SearchSpec, records: Sequence[TrialRecord]) -> list[int]:
    """The numbers of the trials that have not started, and of those whose record is torn."""
    known = {record.number for record in records}
    return [number for number in range(1, max(spec.trial_count, *known, 0) + 1) if number not in known]


class TuneSearcher(Searcher):
    """A sampler as a searcher of Ray Tune: first the trials that continue, then the trials of `new_numbers`.

    No further trial starts when `stops` returns True.
    """

    def __init__(
        self,
        sampler: Sampler,
        resumed: Sequence[TrialRecord],
        new_numbers: Sequence[int],
        on_start: Callable[[int, Mapping[str, Any]], None],
        stops: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__()
        self.sampler, self.on_start, self.stops = sampler, on_start, stops
        self.resumed, self.new_numbers = deque(resumed), deque(new_numbers)
        self.trial_count = len(resumed) + len(new_numbers)
        self.stopped = False  # by `stops`
        self.numbers: dict[str, int] = {}  # by Tune's id of the trial
        for record in resumed:
            if record.unfinished:
                sampler.resume_trial(record.number, dict(record.values))

    def suggest(self, trial_id: str) -> Any:
        """The values of the next trial with its number; FINISHED after the last one."""
        if self.resumed:
            record = self.resumed.popleft()
            number, values = record.number, dict(record.values)
        else:
            self.stopped = self.stopped or (bool(self.new_numbers) and self.stops())
            more = self.new_numbers and not self.stopped
            sampled = self.sampler.sample(self.new_numbers[0]) if more else None
            if sampled is None:
                return Searcher.FINISHED
            number, values = self.new_numbers.popleft(), sampled
            self.on_start(number, values)
        self.numbers[trial_id] = number
        return {TRIAL_NUMBER: number, **values}

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """A round of the trial has ended."""
        self.sampler.on_trial_result(self.numbers[trial_id], result)

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Tune has ended the trial: done, stopped by the scheduler, or failed."""
        result = result or {}
        status = TrialStatus.FAILED if error else result.get("status", TrialStatus.STOPPED)
        self.sampler.on_trial_end(self.numbers[trial_id], result, status)

    def __getstate__(self) -> dict[str, Any]:
        """Empty: Tune would store this object for a restore, which a search does not use."""
        return {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: Any, **spec: Any) -> bool:
        """Accept: the sampler was configured by its constructor."""
        return True

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: a search resumes from its trials' directories."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Do nothing."""
