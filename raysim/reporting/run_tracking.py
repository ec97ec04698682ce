"""Records one run in an experiment tracker, from its events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raysim.config.resolve import to_mapping
from raysim.config.schema import RunConfig
from raysim.core.errors import Interrupted
from raysim.core.events import ActorsPlaced, Event, EventCallback, Notice, RoundEvent
from raysim.core.results import RunOutcome, Score
from raysim.federation.plan import Plan
from raysim.reporting.tracked_runs import RunDescription, flatten
from raysim.reporting.tracker import FILES, Tracker
from raysim.storage.json_lines import read_jsonl
from raysim.storage.recorder import curves_of
from raysim.storage.run_directory import LOG_FILE, SEEDS_FILE, read_environment, read_summary

PROJECT = "raysim"  # of the runs that are not trials


@contextmanager
def tracked(plan: Plan, emit: EventCallback) -> Iterator[EventCallback]:
    """A block with a callback that passes events to `emit`, and sends the run to its tracker if it has one.

    At the end of the block the outcome and the files are sent. A failure of the tracker becomes a notice.
    """
    if plan.config.tracker is None:
        yield emit
        return
    tracking = _RunTracking(plan, emit)
    outcome = RunOutcome.FAILED
    try:
        yield tracking.show
        outcome = RunOutcome.DONE
    except (KeyboardInterrupt, Interrupted):
        outcome = RunOutcome.INTERRUPTED
        raise
    finally:
        tracking.end(outcome)


class _RunTracking:
    """A run in a tracker. It starts with the actors, so that a refused run leaves nothing in the tracker."""

    def __init__(self, plan: Plan, emit: EventCallback) -> None:
        assert plan.config.tracker is not None
        self.plan, self.emit = plan, emit
        self.tracker = Tracker(plan.config.tracker)
        self.has_started = False

    def show(self, event: Event) -> None:
        """Pass on an event; the callback of the run."""
        self.emit(event)
        directory = self.plan.directory
        if isinstance(event, ActorsPlaced) and not self.has_started:
            self.has_started = True
            sent = self.tracker.start(directory, _describe(self.plan))
            for number, row in logged_curves(directory, sent):
                self.tracker.add(directory, number, row)
        elif isinstance(event, RoundEvent):
            self.tracker.add(directory, event.number, curves_of(event.values, event.scores))
        self._report()

    def end(self, outcome: RunOutcome) -> None:
        """Send the outcome and the files, and wait for them."""
        if self.has_started:
            directory = self.plan.directory
            tags = {"digest": str(read_summary(directory)["digest"])} if outcome is RunOutcome.DONE else {}
            self.tracker.end(directory, outcome, tags, [directory / name for name in FILES])
            self.tracker.close()
            self._report()

    def _report(self) -> None:
        for text in self.tracker.take_notices():
            self.emit(Notice(text))


def _describe(plan: Plan) -> RunDescription:
    name, folder = run_name(plan.directory)
    return RunDescription(name, PROJECT, folder, params_of(plan.config), run_tags(plan.directory, plan))


def run_name(directory: Path) -> tuple[str, Path]:
    """The name of a run and the folder that it shares with other runs; one of several seeds is named RUN-seed-K."""
    parent = directory.parent
    if (parent / SEEDS_FILE).is_file():
        return f"{parent.name}-{directory.name}", parent.parent
    return directory.name, parent


def params_of(config: RunConfig) -> dict[str, Any]:
    """The configuration by dotted keys."""
    return dict(flatten(to_mapping(config)))


def version_tags(environment: Mapping[str, Any]) -> dict[str, str]:
    """The versions in env.json."""
    versions = {"raysim": environment.get("raysim"), "python": environment.get("python")}
    return {f"version/{name}": str(value) for name, value in (versions | environment.get("packages", {})).items()}


def run_tags(directory: Path, plan: Plan) -> dict[str, str]:
    """Method, task and versions."""
    return {"algorithm": plan.algorithm_name, "task": plan.task.name, **version_tags(read_environment(directory))}


def logged_curves(directory: Path, after: int) -> Iterator[tuple[int, dict[str, float]]]:
    """Yields the rounds in the log after round `after`, with the values that are sent to a tracker."""
    for row, sites in read_jsonl(directory / LOG_FILE):
        if row["round"] > after:
            scores = [Score(site, role, *rest) for _, site, role, *rest in sites if rest[0] is not None]
            yield row["round"], curves_of(row, scores)
