"""`raysim.run` and `raysim.resume`: the stages of a run, from its configuration to its report.

Imports Ray only for a run on Ray, because a local run does not need it.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Literal

import torch

from raysim.config.merge import read_file
from raysim.config.resolve import load_config, resolve, to_mapping
from raysim.config.schema import RunConfig
from raysim.core.atomic_io import write_json
from raysim.core.errors import ConfigError, PlacementError, ResumableError, RunError, ServerError, SiteError
from raysim.core.events import (
    ActorsPlaced,
    Event,
    EventCallback,
    Message,
    Notice,
    Progress,
    RunFailed,
    RunFinished,
    RunPlanned,
)
from raysim.core.formatting import quote_path
from raysim.core.network_factories import initial_weights
from raysim.core.registry import classes_of, name_of
from raysim.core.results import RunOutcome, RunResult
from raysim.distributed import node_probe
from raysim.distributed.local_ray import set_local_ray_variables, target_address
from raysim.distributed.run_environment import describe_environment, pickle_by_value
from raysim.federation.compilation import measure_compilation
from raysim.federation.continuation import Continuation, copy_records, keep_initial_weights, plan_continuation
from raysim.federation.plan import Plan, build_plan
from raysim.federation.runner import disk_errors_named, idle_gpu_notices, local_fleet, run_federation
from raysim.federation.validation import validate
from raysim.federation.work_estimate import local_backend_hint
from raysim.reporting.html_report import write_report
from raysim.reporting.run_list import write_index
from raysim.reporting.run_tracking import tracked
from raysim.reporting.tracked_runs import check_tracker
from raysim.storage.run_directory import (
    CONTINUED_FILE,
    LOG_FILE,
    SUMMARY_FILE,
    check_new_directory,
    check_run_directory,
    commit,
    exclusive_lock,
    has_checkpoint,
    read_summary,
    remove_content,
    reserve_directory,
)

if TYPE_CHECKING:
    from raysim.distributed.server_actor import Work


def run(
    config: RunConfig | Mapping[str, Any],
    *,
    backend: Literal["ray", "local"] | None = None,
    out: str | Path | None = None,
    continue_from: str | Path | None = None,
    on_event: EventCallback | None = None,
) -> RunResult:
    """Run the federation of `config` and return its result. Writes the same files as `raysim run`.

    `config` contains keys as in a configuration file, dotted or nested. `backend` takes precedence over its `backend`.
    `out` is the run directory, which must not exist; the default is the next free one under `runs`. With
    `continue_from`, the directory of another run, the new run starts from the last checkpoint of that run; `config`
    must have more rounds. `on_event` receives every event of the run; without it, the run prints nothing.

    Raises ConfigError or PlacementError, before anything is written, if the run cannot start; RunError if it fails;
    KeyboardInterrupt after an interrupted run has ended cleanly. Everything that was recorded is kept.
    """
    config = load_config(config)
    config = config if backend is None else replace(config, backend=backend)
    out = None if out is None else str(out)
    check_new_directory(out, "a run")
    check_tracker(config.tracker)
    continuation = None
    if continue_from is not None:
        run_directory = Path(continue_from).absolute()
        config, continuation = plan_continuation(config, read_run_config(run_directory), run_directory)
    with reserve_directory(out, directory_stem(config)) as directory, exclusive_lock(directory):
        return _execute(config, directory, on_event, continuation=continuation)


def directory_stem(config: RunConfig) -> str:
    """The start of the name of a run directory without --out, such as `fedavg-synthetic`."""
    return "-".join(Path(name_of(type(part))).name for part in (config.algorithm, config.task))


def resume(
    directory: str | Path, *, ray_address: str | None = None, on_event: EventCallback | None = None
) -> RunResult:
    """Continue the run in `directory` after its last checkpoint. The result equals that of an uninterrupted run.

    Raises ConfigError if `directory` contains no run, or a run that is done or still active. Also raises what `run`
    raises.
    """
    directory = Path(directory).absolute()
    config = read_run_config(directory, ray_address)
    with exclusive_lock(directory):
        _check_unfinished(directory, config.rounds)
        return _execute(config, directory, on_event, resume=True)


def read_run_config(directory: Path, ray_address: str | None = None) -> RunConfig:
    """The configuration of the run in `directory`, with another Ray address if one is given."""
    check_run_directory(directory)
    config = resolve(read_file(str(directory / "config.yaml")))
    return replace(config, ray_address=ray_address or config.ray_address)


def _check_unfinished(directory: Path, rounds: int) -> None:
    summary = read_summary(directory)
    if summary.get("status") == RunOutcome.DONE:
        early = "early_stopping" in summary
        ended, keys = ("ended by early stopping after", " early_stopping=null") if early else ("all", "")
        raise ConfigError(
            f"{directory} is done, {ended} {summary['rounds']} rounds; for more rounds: "
            f"raysim run --continue {quote_path(directory)} rounds={2 * rounds}{keys}"
        )


def _execute(
    config: RunConfig,
    directory: Path,
    on_event: EventCallback | None,
    *,
    resume: bool = False,
    continuation: Continuation | None = None,
) -> RunResult:
    """The stages of a run: plan, validate, start and run on a backend, report."""
    versions = node_probe.versions()
    plan = build_plan(config, directory, resume=resume, continuation=continuation, versions=versions, emit=on_event)
    validate(plan, on_event)
    emit: EventCallback = on_event or (lambda _: None)
    if continuation is not None:
        emit(Notice(continuation.describe(config.rounds)))
    if config.backend == "ray" and target_address(config.ray_address) is None and (hint := local_backend_hint(plan)):
        emit(Message(hint))
    if plan.compiled and not any(config.resources.of(site)[1] for site in plan.sites):  # measured on the CPU
        emit(Message("compiling the network"))
        emit(Message(measure_compilation(plan, _client_processes(plan))))
    emit(RunPlanned(directory, config.rounds, plan.metric))
    with tracked(plan, emit) as emit, _reported(plan, emit) as emit:
        summary = follow(_run_locally(plan) if config.backend == "local" else _run_on_ray(plan), emit)
    return RunResult(directory, summary)


def _client_processes(plan: Plan) -> int:
    """The number of processes that train; with client_actors=auto, as if the cluster had the CPUs of this machine."""
    resources = plan.config.resources
    if plan.config.backend == "local":
        return 1
    if isinstance(resources.client_actors, int):
        return resources.client_actors
    return max(1, min(len(plan.task.inside), int((os.cpu_count() or 1) / resources.cpus_per_client)))


def _run_locally(plan: Plan) -> Generator[Event]:
    """The events of a run in this process."""
    fleet = local_fleet(plan)
    requested = max(plan.config.resources.of(site)[1] for site in plan.sites)
    yield from idle_gpu_notices(requested, torch.cuda.device_count())
    placement = ActorsPlaced([], dict.fromkeys(plan.sites, "local"))
    _commit(plan, placement)
    yield placement
    yield from run_federation(plan, fleet)


def _run_on_ray(plan: Plan) -> Generator[Event]:
    """The events of a run on Ray. Placements are recorded as they happen."""
    with closing(ray_events(plan, run_federation)) as events:
        for event in events:
            if isinstance(event, ActorsPlaced):  # at the start, or after an actor has moved
                import ray

                _commit(plan, event, ray.cluster_resources())
            yield event


def ray_events(plan: Plan, work: Work) -> Generator[Event]:
    """The events of `work` on Ray: connect, admit, start the actors, run it with the fleet of these actors."""
    config = plan.config
    set_local_ray_variables(config.ray_address)
    from raysim.distributed.admission import admit
    from raysim.distributed.connection import connect, connected_message
    from raysim.distributed.control_actor import NAMESPACE
    from raysim.distributed.run_driver import stream_events

    pickle_by_value(*classes_of(config.algorithm), type(config.task))
    yield Message("starting Ray")
    with connect(config.ray_address) as dashboard:
        yield Message(connected_message(dashboard))
        joined = target_address(config.ray_address) is not None
        if joined:
            yield Progress(phase="checking the nodes of the cluster")
        request = yield from admit(plan, joined=joined)
        namespace = f"{NAMESPACE}{plan.directory.name}-{token_hex(3)}"
        with closing(stream_events(plan, request, namespace, work)) as events:
            yield from events


def _commit(plan: Plan, placement: ActorsPlaced, cluster: Mapping[str, float] | None = None) -> None:
    environment = describe_environment(cluster)
    initial, continuation = initial_weights(plan.task), plan.continuation
    with disk_errors_named(plan.directory):
        if not (plan.directory / "config.yaml").exists():
            keep_initial_weights(plan.task, plan.directory)
            if initial is not None:
                environment["initial_weights"] = initial.to_mapping()
            if continuation is not None:
                copy_records(continuation.run, plan.directory)
                write_json(plan.directory / CONTINUED_FILE, continuation.to_mapping())
        commit(plan.directory, to_mapping(plan.config), environment, placement)


def follow(events: Generator[Event], emit: EventCallback) -> Mapping[str, Any]:
    """Pass the events to `emit`, and return the summary of the run. Raises the error of a run that failed."""
    summary: Mapping[str, Any] | None = None
    # Closed explicitly, not by the garbage collector: after Ctrl-C in `emit`, the run must end before Ray does.
    with closing(events):
        for event in events:
            if isinstance(event, RunFailed):
                raise event.error
            emit(event)
            if isinstance(event, RunFinished):
                summary = event.values
    assert summary is not None  # every run ends with RunFinished or RunFailed
    return summary


@contextmanager
def _reported(plan: Plan, emit: EventCallback) -> Iterator[EventCallback]:
    """Writes report.html at the end of the block, also after a failure. Reports how to resume a failed run.

    The block passes its events to the yielded callback. After RunFinished a thread writes the report while Ray stops.
    Removes the files of a new run if its first call shows that the code of the algorithm is wrong.
    """
    pool, reports = ThreadPoolExecutor(1, "raysim-report"), list[Future[str]]()

    def emit_and_report(event: Event) -> None:
        emit(event)
        if isinstance(event, RunFinished):
            reports.append(pool.submit(_write_report, plan.directory))

    try:
        yield emit_and_report
    except (RunError, PlacementError, KeyboardInterrupt) as error:
        if isinstance(error, SiteError | ServerError) and error.has_no_result and not plan.resume:
            remove_content(plan.directory)
        elif (plan.directory / LOG_FILE).exists() and not isinstance(error, ResumableError):
            cure = (
                f"; to continue: raysim resume {quote_path(plan.directory)}" if has_checkpoint(plan.directory) else ""
            )
            emit(Message(f"the records of the run are in {plan.directory}{cure}"))
        raise
    finally:
        if (plan.directory / SUMMARY_FILE).exists():  # otherwise the run has not started, or its server was lost
            emit(Message(_report_message((reports or [pool.submit(_write_report, plan.directory)])[0])))
            with suppress(Exception):  # a failure to write this list must not change the outcome of the run
                write_index(plan.directory)
        pool.shutdown(wait=False)


def _report_message(report: Future[str]) -> str:
    try:
        return report.result()
    except KeyboardInterrupt:  # it must not change the outcome of the run
        return "report.html was not written: KeyboardInterrupt"


def _write_report(directory: Path) -> str:
    """Write report.html in this process, because the server actor may be lost. Returns a message with the result."""
    try:
        return f"report: {write_report(directory)}"
    except Exception as error:  # noqa: BLE001 - it must not change the outcome of the run
        reason = " ".join(str(error).split())
        return f"report.html was not written: {type(error).__name__}{f': {reason}' if reason else ''}"
