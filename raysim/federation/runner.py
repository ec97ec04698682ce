"""One run, from its first round to its summary: federate, record, checkpoint. The same on Ray and without."""

from __future__ import annotations

import time
import traceback
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from raysim.config.schema import RunConfig
from raysim.core.errors import Interrupted, LostError, PlacementError, RaysimError, RunError, ServerError
from raysim.core.events import Note, Row, Summary
from raysim.core.registry import classes_of
from raysim.core.results import Incident, Start
from raysim.federation.fleet import BaseFleet, LocalFleet
from raysim.federation.plan import Plan
from raysim.federation.round_loop import federate
from raysim.federation.site_executor import Opened, threads_of
from raysim.storage import checkpoint
from raysim.storage.event_log import note
from raysim.storage.recorder import Recorder
from raysim.storage.serialization import digest

BACK = 5  # times that a run goes back to its last checkpoint before it gives up


def perform(plan: Plan, fleet: BaseFleet) -> Iterator[Row | Note | Summary]:
    """Each round's row as it ends, then the summary.

    Whatever ends the run early, what was recorded until then is on the disk, with a summary that says why.
    """
    with writing(plan.out):
        recorder = Recorder(plan.out, plan.task, plan.metric)
    fleet.ledger.min_replies, fleet.ledger.site_timeout = plan.min_replies, plan.site_timeout
    facts = {"algorithm": plan.algorithm_name, "task": plan.task.name, "seed": plan.seed}
    try:
        state = yield from _rounds(plan, fleet, recorder)
        proof = digest(state, fleet.memories())
        with writing(plan.out):
            summary = recorder.close("done", facts, proof)
        yield Summary(summary)
    except (Interrupted, KeyboardInterrupt, GeneratorExit):
        with suppress(OSError):
            note(plan.out, fleet.ledger.told())
            recorder.close("interrupted", facts, None)
        raise
    except RaysimError as error:
        yield from _fail(recorder, fleet, facts, error)
        raise
    except (Exception, SystemExit) as error:
        failure = ServerError(fleet.ledger.round + 1, f"{type(error).__name__}: {error}", traceback.format_exc())
        yield from _fail(recorder, fleet, facts, failure)
        raise failure from error


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Raises RunError, with the cure, for what the disk refuses in the block."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"cannot write to {out}: {error.strerror or error}; what was written before is whole. "
            f"Make room there, then: raysim resume {out}"
        ) from error


def _fail(recorder: Recorder, fleet: BaseFleet, facts: Mapping[str, Any], error: RaysimError) -> Iterator[Note]:
    """Write down what ended the run, and tell of what went wrong before that in its last round."""
    incidents = list(fleet.ledger.told())
    yield from (Note(_told(each), each.action) for each in incidents if each.action != "ended the run")
    if not incidents or incidents[-1].action != "ended the run":
        number = fleet.ledger.round + 1
        phase = "server" if isinstance(error, ServerError) else fleet.ledger.progress.phase
        incidents.append(Incident(number, phase, (), "", str(error), "ended the run", remote=error.remote))
    with suppress(OSError):  # the disk may be what has failed: then the error is all that is left to tell
        note(recorder.out, incidents)
        recorder.close("failed", {**facts, "error": str(error)}, None)


def _rounds(plan: Plan, fleet: BaseFleet, recorder: Recorder) -> Generator[Row | Note, None, Any]:
    """The last state, after all rounds that are still to come; from the last checkpoint again if objects were lost."""
    start, lost_in, times = None, -1, 0
    note(plan.out, early := fleet.ledger.told())  # of actors that could not begin
    for incident in early:
        yield Note(_told(incident), incident.action)
    if plan.resume:
        start, _ = yield from _last_checkpoint(plan, fleet, recorder)
    while True:
        try:
            return (yield from _from(start, plan, fleet, recorder))
        except LostError as error:
            number, incidents = fleet.ledger.round, fleet.ledger.told()
            times = 1 if number > lost_in else times + 1
            lost_in = max(lost_in, number)
            note(plan.out, incidents)
            if times == BACK:
                raise RunError(
                    f"{error}; that was {times} times in a row: look at the health of the cluster"
                ) from error
            for incident in incidents:
                yield Note(_told(incident), incident.action)
            action: Literal["went back to the last checkpoint"] = "went back to the last checkpoint"
            yield Note(f"{error}; going back to the last checkpoint", action)
            start, seconds = yield from _last_checkpoint(plan, fleet, recorder)
            note(plan.out, [Incident(number + 1, "", (), "", str(error), action, seconds)])


def _last_checkpoint(
    plan: Plan, fleet: BaseFleet, recorder: Recorder
) -> Generator[Row | Note, None, tuple[Start[Any] | None, float]]:
    """The newest checkpoint that is whole, None if there is none, and the seconds of the rounds after it.

    Records and memories are as they were then.
    """
    start = None
    for path in checkpoint.newest_first(plan.out / "checkpoints"):
        try:
            start = checkpoint.read(path, trusted=[cls.__module__ for cls in classes_of(plan.algorithm)])
            break
        except RunError as error:
            yield Note(f"{error}; taking the one before it")
    number = start.number if start else 0
    yield Note(f"going on after round {number}" if number else "no checkpoint is whole: starting from round 1")
    fleet.ledger.memories.clear()
    return start, recorder.rewind(number)


def _from(
    start: Start[Any] | None, plan: Plan, fleet: BaseFleet, recorder: Recorder
) -> Generator[Row | Note, None, Any]:
    state = start.state if start else None
    for final in federate(
        plan.algorithm,
        plan.task,
        fleet,
        rounds=plan.rounds,
        cohort=plan.cohort,
        dropout=plan.dropout,
        seed=plan.seed,
        evaluate_every=plan.evaluate_every,
        start=start,
    ):
        ended = time.perf_counter()
        with writing(plan.out):
            row = recorder.add(final)
            if final.number % plan.checkpoint_every == 0 or final.number == plan.rounds:
                recorder.sync()  # a checkpoint has all its rounds in the log
                folder = plan.out / "checkpoints"
                checkpoint.write(folder, final.number, final.state, fleet.memories())
        for incident in final.incidents:
            yield Note(_told(incident))
        phases = {**final.phases, "recording": time.perf_counter() - ended}
        yield Row(final.number, row, replace(final, phases=phases))
        state = final.state
    return state


def _told(incident: Incident) -> str:
    sites = ", ".join(incident.sites[:4]) + (f" and {len(incident.sites) - 4} more" if incident.sites[4:] else "")
    who = f"{incident.actor} was lost with {sites}" if incident.actor and sites else incident.actor or sites
    return f"round {incident.round}, {incident.call}: {who}: {incident.cause} -> {incident.action}"


def local_fleet(plan: Plan, config: RunConfig, opened: Opened | None = None) -> LocalFleet:
    """All sites in this process. `opened` are the data that it has open already."""
    resources = config.resources
    gpus = max(resources.of(site)[1] for site in (*plan.task.inside, *plan.task.outside))
    device = "cuda" if gpus else "cpu"
    if gpus and not torch.cuda.is_available():
        raise PlacementError(
            f"resources: {gpus:g} GPU is asked for, but torch finds no GPU on this machine; leave it at 0"
        )
    return LocalFleet(
        plan.task,
        seed=plan.seed,
        rounds=plan.rounds,
        device=device,
        threads=threads_of(resources.cpus_per_client),
        own_threads={site: threads_of(resources.of(site)[0]) for site in resources.sites},
        chaos=plan.chaos,
        opened=opened,
    )
