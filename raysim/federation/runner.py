"""One run from its first round to its summary: rounds, records, checkpoints. Used with and without Ray."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from raysim.core.errors import (
    Interrupted,
    LostObjectError,
    PlacementError,
    RaysimError,
    ResumableError,
    RunError,
    ServerError,
)
from raysim.core.events import Notice, RoundEvent, RunFinished
from raysim.core.formatting import pluralize, quote_path
from raysim.core.results import FailureAction, FailureEvent, ResumePoint, Round, RunOutcome
from raysim.core.user_errors import describe_exception, format_user_traceback
from raysim.federation.checkpoints import read_checkpoint, restore_checkpoint, write_checkpoints
from raysim.federation.fleet import BaseFleet, LocalFleet
from raysim.federation.model_export import export_models
from raysim.federation.plan import Plan
from raysim.federation.round_loop import federate
from raysim.federation.site_data import SiteDataCache
from raysim.federation.site_executor import torch_threads
from raysim.federation.site_pictures import save_pictures
from raysim.storage import checkpoint
from raysim.storage.digest import digest
from raysim.storage.recorder import Recorder
from raysim.storage.run_directory import BEST, read_continued
from raysim.storage.score_notes import NOTHING_EVALUATED

MAX_ROLLBACKS = 5  # the run fails after so many in a row without a new round between them


def run_federation(plan: Plan, fleet: BaseFleet) -> Iterator[RoundEvent | Notice | RunFinished]:
    """Yields the row of each round when it ends, then the summary.

    If the run ends early, all finished rounds are on the disk, with a summary that has the reason.
    """
    with disk_errors_named(plan.directory):
        recorder = Recorder(
            plan.directory, plan.task, plan.metric, plan.selection, anonymous_cases=plan.config.anonymous_cases
        )
    facts = _facts(plan)
    try:
        state = yield from _run_with_rollbacks(plan, fleet, recorder)
        final_digest = digest(state, fleet.client_states)
        if plan.writes_models_and_pictures:
            yield from _export(plan, fleet, recorder, state)
        with disk_errors_named(plan.directory):
            checkpoint.keep_only(plan.directory / BEST, {recorder.best.number})
            if reason := _stopping_reason(plan, recorder):
                facts["early_stopping"] = reason
            summary = recorder.close(RunOutcome.DONE, facts, final_digest)
        yield RunFinished(summary)
    except (Interrupted, KeyboardInterrupt, GeneratorExit):
        with suppress(OSError):
            recorder.add_failures(fleet.accounting.take_failures())
            recorder.close(RunOutcome.INTERRUPTED, facts, None)
        raise
    except RaysimError as error:
        yield from _fail(recorder, fleet, facts, error)
        raise
    except (Exception, SystemExit) as error:
        number, has_no_result = fleet.accounting.number, fleet.accounting.number == 1 and not fleet.accounting.calls
        failure = ServerError(number, describe_exception(error), format_user_traceback(error), has_no_result)
        yield from _fail(recorder, fleet, facts, failure)
        raise failure from error


def _facts(plan: Plan) -> dict[str, Any]:
    """The entries of summary.json that are known at the start of the run."""
    task, continued = plan.task, read_continued(plan.directory)
    named = {"algorithm": plan.algorithm_name, "task": task.name, "seed": plan.config.seed}
    named |= {"shape": list(task.shape), "classes": dict(task.class_values)}
    if task.computed:
        named["computed"] = dict(task.computed)
    return named | ({"continued": continued} if continued else {})


@contextmanager
def disk_errors_named(directory: Path) -> Iterator[None]:
    """Raises ResumableError, which has the cure, if a write in the block fails."""
    try:
        yield
    except OSError as error:
        raise ResumableError(
            f"cannot write to {directory}: {error.strerror or error}; files written before are intact. "
            f"Free some space there, then run: raysim resume {quote_path(directory)}"
        ) from error


def _fail(recorder: Recorder, fleet: BaseFleet, facts: Mapping[str, Any], error: RaysimError) -> Iterator[Notice]:
    """Record the failure that ended the run; yields a notice of each earlier failure of its last round."""
    failures = list(fleet.accounting.take_failures())
    yield from _notices(each for each in failures if each.action is not FailureAction.RUN_ENDED)
    if not failures or failures[-1].action is not FailureAction.RUN_ENDED:
        number = fleet.accounting.number
        phase = "server" if isinstance(error, ServerError) else fleet.progress.phase
        failures.append(FailureEvent(number, phase, (), "", str(error), FailureAction.RUN_ENDED, remote=error.remote))
    with suppress(OSError):  # the disk itself may have failed
        recorder.add_failures(failures)
        recorder.close(RunOutcome.FAILED, {**facts, "error": str(error)}, None)


def _run_with_rollbacks(plan: Plan, fleet: BaseFleet, recorder: Recorder) -> Generator[RoundEvent | Notice, None, Any]:
    """The state after the last round. If an object is lost, the run returns to its last checkpoint."""
    start, furthest, rollbacks = None, -1, 0
    dropped = fleet.accounting.take_failures()  # failures of actors at their start
    recorder.add_failures(dropped)
    yield from _notices(dropped)
    if plan.resume:
        start, _ = yield from restore_checkpoint(plan, fleet, recorder)
    while True:
        try:
            return (yield from _run_rounds(plan, fleet, recorder, start))
        except LostObjectError as error:
            index, failures = fleet.accounting.round, fleet.accounting.take_failures()
            rollbacks = 1 if index > furthest else rollbacks + 1
            furthest = max(furthest, index)
            recorder.add_failures(failures)
            if rollbacks == MAX_ROLLBACKS:
                raise RunError(f"{error}; this happened {rollbacks} times in a row: check the cluster") from error
            yield from _notices(failures)
            action = FailureAction.ROLLED_BACK
            yield Notice(f"{error}; returning to the last checkpoint", action)
            start, seconds = yield from restore_checkpoint(plan, fleet, recorder)
            recorder.add_failures([FailureEvent(index + 1, "", (), "", str(error), action, seconds)])


def _notices(failures: Iterable[FailureEvent]) -> Iterator[Notice]:
    return (Notice(describe_failure(failure), failure.action) for failure in failures)


def _run_rounds(
    plan: Plan, fleet: BaseFleet, recorder: Recorder, start: ResumePoint[Any] | None
) -> Generator[RoundEvent | Notice, None, Any]:
    """Run, record and checkpoint the rounds after `start`; returns the last state."""
    state = start.state if start else None
    if start and _stopping_reason(plan, recorder):  # all rounds had ended, but the summary is missing
        fleet.client_states.restore(start.client_states)
        return state
    first_evaluation = min(plan.config.evaluate_every, plan.config.rounds)
    for ended in federate_plan(plan, fleet, start):
        began = time.perf_counter()
        with disk_errors_named(plan.directory):
            row = recorder.add(ended)
            reason = _stopping_reason(plan, recorder)
            due = ended.number % plan.config.checkpoint_every == 0 or ended.number == plan.config.rounds
            write_checkpoints(plan, fleet, recorder, ended, due=due or bool(reason))
        for failure in ended.failures:
            yield Notice(describe_failure(failure))  # without the action: the RoundEvent carries the failure
        if ended.number == first_evaluation < plan.config.rounds and not recorder.last.scores:
            yield Notice(NOTHING_EVALUATED)  # now, because the run may take hours; at its end it is in the summary
        phases = {**ended.phases, "recording": time.perf_counter() - began}
        is_last = bool(reason) or ended.number == plan.config.rounds
        scores = ended.scores if plan.config.tracker else ()
        yield RoundEvent(ended.number, row, scores, replace(ended, phases=phases), is_last=is_last)
        state = ended.state
        if reason:
            yield Notice(reason)
            break
    return state


def _stopping_reason(plan: Plan, recorder: Recorder) -> str:
    """The reason why the run ends early after its last recorded round; empty if the run continues."""
    stopping, number = plan.config.early_stopping, recorder.number
    if stopping is None or number == plan.config.rounds:
        return ""
    if recorder.tracker.evaluations_without_gain(stopping.min_gain) < stopping.patience:
        return ""
    return (
        f"early stopping after round {number} of {plan.config.rounds}: {pluralize(stopping.patience, 'evaluation')} "
        f"without a gain of more than {stopping.min_gain:g} in {plan.selection}"
    )


def _export(plan: Plan, fleet: BaseFleet, recorder: Recorder, state: Any) -> Iterator[Notice]:
    """Write models/ and pictures/ after the best round, or after the last if no round was chosen.

    `state` is the last state. The client states of the fleet are replaced by those of the exported round. The failure
    of a site is reported and does not end the run.
    """
    number = recorder.best.number or recorder.number
    try:
        if number != recorder.number:
            best = read_checkpoint(plan, checkpoint.path_of(plan.directory / BEST, number))
            state = best.state
            fleet.client_states.held.clear()
            fleet.client_states.restore(best.client_states)
        fleet.accounting.open_round(number - 1)
        with disk_errors_named(plan.directory):
            export_models(plan, fleet, state, recorder.summarize_best())
            save_pictures(plan, fleet, state, recorder.cases.get(number, ()))
    except (Interrupted, ResumableError):
        raise
    except RaysimError as error:
        yield Notice(f"models/ or pictures/ is not complete: {error}")
    failures = fleet.accounting.take_failures()
    recorder.add_failures(failures)
    yield from _notices(failures)


def federate_plan(plan: Plan, fleet: BaseFleet, start: ResumePoint[Any] | None = None) -> Iterator[Round[Any]]:
    """The rounds of `federate` with the configuration of `plan`, after `start`."""
    config = plan.config
    return federate(
        config.algorithm,
        plan.task,
        fleet,
        rounds=config.rounds,
        cohort=config.cohort.size,
        dropout=config.cohort.dropout,
        seed=config.seed,
        evaluate_every=config.evaluate_every,
        start=start,
    )


def describe_failure(failure: FailureEvent) -> str:
    """One line: round, call, actor and sites, cause, and the action that was taken."""
    sites = ", ".join(failure.sites[:4]) + (f" and {len(failure.sites) - 4} more" if failure.sites[4:] else "")
    who = f"{failure.actor} was lost with {sites}" if failure.actor and sites else failure.actor or sites
    return f"round {failure.round}, {failure.call}: {who}: {failure.cause} -> {failure.action}"


def idle_gpu_notices(requested: float, available: float) -> Iterator[Notice]:
    """A notice if GPUs are `available` and the client actors, or this process, requested none."""
    if available and not requested:
        yield Notice(
            f"the run uses no GPU; available: {pluralize(round(available), 'GPU')}. Set "
            "resources.gpus_per_client=1, or a fraction such as 0.5, so that client actors share a GPU"
        )


def local_fleet(plan: Plan, data_cache: SiteDataCache | None = None) -> LocalFleet:
    """A fleet with all sites in this process. `data_cache` holds data that are open already.

    Raises PlacementError if GPUs are requested and torch finds none.
    """
    config, resources = plan.config, plan.config.resources
    gpus = max(resources.of(site)[1] for site in plan.sites)
    device = "cuda" if gpus else "cpu"
    if gpus and not torch.cuda.is_available():
        raise PlacementError(
            f"resources: {gpus:g} GPU requested, but torch finds no GPU on this machine; set "
            "resources.gpus_per_client=0, and no gpus in resources.sites"
        )
    return LocalFleet(
        plan.task,
        seed=config.seed,
        rounds=config.rounds,
        min_replies=config.min_replies,
        device=device,
        threads=torch_threads(resources.cpus_per_client),
        own_threads={site: torch_threads(resources.of(site)[0]) for site in resources.sites},
        chaos=plan.faults,
        data_cache=data_cache,
        batch_sites=plan.batch_sites,
    )
