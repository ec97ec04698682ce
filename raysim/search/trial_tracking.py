"""Records the trials of a search in an experiment tracker, each as a run, in the same way as `raysim run` does."""

from __future__ import annotations

from typing import Any

from ray.tune import Callback
from ray.tune.result import AUTO_RESULT_KEYS

from raysim.config.schema import TrackerName
from raysim.core.events import Notice
from raysim.core.numeric import is_number
from raysim.reporting.run_tracking import params_of, version_tags
from raysim.reporting.search_console import SearchConsole
from raysim.reporting.tracked_runs import RunDescription
from raysim.reporting.tracker import Tracker
from raysim.search.results import SearchResults
from raysim.search.trial_store import TrialRecord, trial_directory
from raysim.search.tune_compat import trial_number
from raysim.storage.run_directory import read_environment


class TrialTracking(Callback):
    """Sends each trial to the tracker. Must be called after TuneCallback, which updates the records."""

    def __init__(self, name: TrackerName, results: SearchResults, console: SearchConsole) -> None:
        self.tracker, self.results, self.console = Tracker(name), results, console
        self.running = set[int]()
        self.versions = version_tags(read_environment(results.spec.out))

    def __getstate__(self) -> dict[str, Any]:
        """An empty mapping: Tune stores this object for a restore, which a search does not use."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A round of the trial has ended."""
        number = trial_number(trial)
        record = self.results.records[number]
        if number in self.results.ended_earlier or result.get("unfit_node") or record.failed:
            return
        if number not in self.running:
            self._start(record)
        row = {key: value for key, value in result.items() if key not in AUTO_RESULT_KEYS and is_number(value)}
        self.tracker.add(trial_directory(self.results.spec.out, number), record.rounds, row)
        self._report()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial has ended: done, or stopped."""
        self._end(trial_number(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial's process was lost too often."""
        self._end(trial_number(trial))

    def close(self) -> None:
        """End the remaining trials, add the files of the search to the best trial, and wait until all data are sent."""
        for number in sorted(self.running):
            self._end(number)
        if best := self.results.best():
            out, record = self.results.spec.out, best[0]
            directory = trial_directory(out, record.number)
            self._start(record)
            files = [out / "best.yaml", out / "report.html", directory / "config.yaml", directory / "summary.json"]
            self.tracker.end(directory, record.reported_status, _digests(record) | {"best_trial": "true"}, files)
        self.tracker.close()
        self._report()

    def _start(self, record: TrialRecord) -> None:
        spec = self.results.spec
        config = spec.config(record.values, next(iter(spec.variants_of(record.values).values())))
        assert spec.task is not None
        tags = {"algorithm": params_of(config)["algorithm.name"], "task": spec.task.name, "trial": str(record.number)}
        name = f"{spec.out.name}-{record.number:04}"
        description = RunDescription(name, spec.out.name, spec.out, params_of(config), tags | self.versions)
        self.tracker.start(trial_directory(spec.out, record.number), description)
        self.running.add(record.number)

    def _end(self, number: int) -> None:
        if number in self.running:
            self.running.remove(number)
            record = self.results.records[number]
            status = "interrupted" if record.unfinished else record.reported_status
            self.tracker.end(trial_directory(self.results.spec.out, number), status, _digests(record))
            self._report()

    def _report(self) -> None:
        for text in self.tracker.take_notices():
            self.console.show(Notice(text))


def _digests(record: TrialRecord) -> dict[str, str]:
    return {f"digest/{name}" if name else "digest": digest for name, digest in record.digests.items()}
