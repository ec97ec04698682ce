"""Checkpoints of a run: checkpoints/ has the last two, best/ has that of the best round."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

from raysim.core.errors import RunError
from raysim.core.events import Notice
from raysim.core.registry import classes_of
from raysim.core.results import ResumePoint, Round
from raysim.federation.fleet import BaseFleet
from raysim.federation.plan import Plan
from raysim.storage import checkpoint
from raysim.storage.recorder import Recorder
from raysim.storage.run_directory import BEST, CHECKPOINTS


def write_checkpoints(plan: Plan, fleet: BaseFleet, recorder: Recorder, ended: Round[Any], *, due: bool) -> None:
    """Write a checkpoint to best/ if the round is the best so far, and one to checkpoints/ if that is `due`.

    best/ also keeps the best round up to each checkpoint in checkpoints/, because the run may return to one of these.
    """
    best, checkpoints = plan.directory / BEST, plan.directory / CHECKPOINTS
    written = None
    if recorder.best.number == ended.number:
        kept = [recorder.tracker.best(checkpoint.round_of(path)) for path in checkpoint.newest_first(checkpoints)]
        written = checkpoint.write(best, ended.number, ended.state, fleet.client_states, cases=ended.cases, kept=kept)
    if due:
        recorder.sync()  # a checkpoint needs the log of all rounds before it
        if written is not None:
            checkpoint.copy(written, checkpoints)
        else:
            cases = recorder.cases.get(recorder.last.number, ())
            checkpoint.write(checkpoints, ended.number, ended.state, fleet.client_states, cases=cases)


def restore_checkpoint(
    plan: Plan, fleet: BaseFleet, recorder: Recorder
) -> Generator[Notice, None, tuple[ResumePoint[Any] | None, float]]:
    """The newest intact checkpoint (or None), and the seconds of the rounds after it.

    Records are reset to that checkpoint. Client states are cleared; `federate` restores them. The checkpoint of the
    best round until then must be intact too.
    """
    start, seconds = None, 0.0
    for path in checkpoint.newest_first(plan.directory / CHECKPOINTS):
        try:
            start = read_checkpoint(plan, path)
            seconds += recorder.rewind(start.number)
            recorder.cases[recorder.last.number] = checkpoint.read_cases(path)
            if recorder.best.number:
                best = checkpoint.path_of(plan.directory / BEST, recorder.best.number)
                read_checkpoint(plan, best)
                recorder.cases[recorder.best.number] = checkpoint.read_cases(best)
            break
        except RunError as error:
            start = None
            yield Notice(f"{error}; using the previous checkpoint")
    if start is None:
        seconds += recorder.rewind(0)
    number = start.number if start else 0
    yield Notice(f"resuming after round {number}" if number else "no intact checkpoint: starting from round 1")
    fleet.client_states.held.clear()
    return start, seconds


def read_checkpoint(plan: Plan, path: Path) -> ResumePoint[Any]:
    """The resume point in `path`. Raises RunError if it is damaged."""
    return checkpoint.read(path, trusted=[cls.__module__ for cls in classes_of(plan.config.algorithm)])
