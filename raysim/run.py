"""One run, from its first round to its summary: federate, record, checkpoint. The same on Ray and without."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from raysim import checkpoint
from raysim.chaos import Chaos
from raysim.codec import digest
from raysim.data.wording import listed
from raysim.errors import ConfigError, LostError, RaysimError, RunError, ServerError
from raysim.fleet import BaseFleet, Interrupted
from raysim.log import note
from raysim.naming import nearest
from raysim.record import Recorder
from raysim.registry import classes_of
from raysim.rounds import Start, federate
from raysim.seeding import seeded
from raysim.types import JUDGED, Algorithm, Incident, Round, Task

BACK = 5  # times that a run goes back to its last checkpoint before it gives up


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a run needs, checked and ready."""

    algorithm: Algorithm[Any]
    algorithm_name: str
    task: Task
    out: Path
    rounds: int
    cohort: float | int
    seed: int
    evaluate_every: int
    checkpoint_every: int
    metric: str
    model_bytes: int = 0  # of the network
    dropout: float = 0.0
    min_replies: float | int = 1.0
    site_timeout: float = math.inf
    chaos: Chaos = field(default_factory=Chaos)
    resume: bool = False  # go on from the newest checkpoint in `out`
    versions: Mapping[str, str] = field(default_factory=dict)  # of the command's packages, which nodes are to have
    reads: Sequence[str] = ()  # what nodes are to be able to read


@dataclass(frozen=True)
class Row:
    """A finished round, as displays show it: its row in rounds.parquet."""

    number: int
    values: Mapping[str, Any]
    round: Round[Any] | None = None  # the round itself, in the process that has run it: it does not travel


@dataclass(frozen=True)
class Note:
    """Something that whoever watches should know, and what was done if something had gone wrong outside a round."""

    text: str
    action: str = ""


@dataclass(frozen=True)
class Summary:
    """The end of the run: what summary.json holds."""

    values: Mapping[str, Any]


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


def chosen_metric(task: Task, asked: str | None) -> str:
    """The `role/split/metric` to show and judge by. Raises ConfigError for one that no site can have."""
    possible = [
        f"{role}/{split}/{metric}"
        for role, sites in (("inside", task.inside), ("outside", task.outside))
        for split in JUDGED
        if any(task.sizes[site].get(split, 0) for site in sites)
        for metric in task.score.better
    ]
    if asked is None:
        if not possible:
            raise ConfigError("no site has a val or a test row: there is nothing to judge the run by")
        return possible[0]
    if asked.removesuffix("@global") not in possible:
        raise ConfigError(f"metric={asked!r}: expected one of {', '.join(possible) or 'none'}, or one with @global")
    return asked


def check_training(task: Task) -> None:
    """Raises ConfigError if an inside site has nothing to train on."""
    empty = [site for site in task.inside if not task.sizes[site].get("train", 0)]
    if not task.inside:
        raise ConfigError("every site is an outside site: nobody is left to train; shorten task.data.outside")
    if empty:
        named = listed([repr(site) for site in empty])
        raise ConfigError(
            f"no training rows at {named}: every inside site trains. Give it rows with split train, or only judge it: "
            f"task.data.outside=[{', '.join([*task.outside, *empty][:8])}]"
        )


def check_last_batch(task: Task) -> None:
    """Raises ConfigError if a site's last batch of a pass is a single example and the network cannot train on one."""
    size = task.batch_size
    single = [site for site in task.inside if size == 1 or task.sizes[site]["train"] % size == 1]
    if not single:
        return
    example = torch.from_numpy(task.open(single[0]).train.inputs[:1])
    try:
        with torch.no_grad():
            task.start(0).train()(example)
    except ValueError as error:  # batch statistics of one value
        raise ConfigError(
            f"task.batch_size={size} leaves a last batch of one example at '{single[0]}' "
            f"({task.sizes[single[0]]['train']} training examples), on which the network cannot train: {error}. "
            "Choose another batch size, fewer levels, or another norm"
        ) from error


def check_algorithm(algorithm: Algorithm[Any], task: Task, seed: int, rounds: int) -> None:
    """Raises ConfigError for a task, or a number of rounds, that the algorithm refuses.

    Whatever else goes wrong in it, the run tells of. An algorithm that cannot do with any number of rounds has a method
    `check_rounds(rounds)`.
    """
    try:
        if check := getattr(algorithm, "check_rounds", None):
            check(rounds)
        with seeded(seed, "init"):
            algorithm.init(task)
    except ConfigError:
        raise
    except Exception:  # noqa: BLE001 - with its traceback, when it comes again
        return


def check_sites(task: Task, named: Collection[str]) -> None:
    """Raises ConfigError for a site under resources.sites that the task does not have."""
    sites = (*task.inside, *task.outside)
    for site in named:
        if site not in sites:
            raise ConfigError(
                f"resources.sites: there is no site {site!r}{nearest(site, sites)}; sites: {listed(sites)}"
            )


def check_cohort(task: Task, cohort: float | int) -> None:
    """Raises ConfigError if the cohort is no part of the inside sites."""
    most = 1.0 if isinstance(cohort, float) else len(task.inside)
    if cohort > most:
        raise ConfigError(f"cohort={cohort}: expected a fraction up to 1.0, or 1 to {len(task.inside)} sites")
