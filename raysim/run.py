"""One run, from its first round to its summary: federate, record, checkpoint. The same on Ray and without."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from raysim import checkpoint
from raysim.codec import digest
from raysim.errors import ConfigError, RaysimError, ServerError
from raysim.fleet import BaseFleet, Interrupted
from raysim.record import Recorder
from raysim.rounds import federate
from raysim.types import JUDGED, Algorithm, Round, Task


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


@dataclass(frozen=True)
class Row:
    """A finished round, as displays show it: its row in rounds.parquet."""

    number: int
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Summary:
    """The end of the run: what summary.json holds."""

    values: Mapping[str, Any]


def perform(plan: Plan, fleet: BaseFleet) -> Iterator[Row | Summary]:
    """Each round's row as it ends, then the summary.

    Whatever ends the run early, what was recorded until then is on the disk, with a summary that says why.
    """
    recorder = Recorder(plan.out, plan.task, plan.metric)
    facts = {"algorithm": plan.algorithm_name, "task": plan.task.name, "seed": plan.seed}
    try:
        final = None
        for final in _rounds(plan, fleet):
            yield Row(final.number, recorder.add(final))
            if final.number % plan.checkpoint_every == 0 or final.number == plan.rounds:
                memories = {site: fleet.memory(site) for site in sorted(fleet.ledger.memories)}
                checkpoint.write(plan.out / "checkpoints", final.number, final.state, memories, recorder.totals)
        assert final is not None  # there is at least one round
        memories = {site: fleet.memory(site) for site in sorted(fleet.ledger.memories)}
        yield Summary(recorder.close("done", facts, digest(final.state, memories)))
    except (Interrupted, KeyboardInterrupt, GeneratorExit):
        recorder.close("interrupted", facts, None)
        raise
    except RaysimError as error:
        recorder.close("failed", facts | {"error": str(error)}, None)
        raise
    except Exception as error:
        failure = ServerError(fleet.ledger.round + 1, f"{type(error).__name__}: {error}", traceback.format_exc())
        recorder.close("failed", facts | {"error": str(failure)}, None)
        raise failure from error


def _rounds(plan: Plan, fleet: BaseFleet) -> Iterator[Round[Any]]:
    return federate(
        plan.algorithm,
        plan.task,
        fleet,
        rounds=plan.rounds,
        cohort=plan.cohort,
        seed=plan.seed,
        evaluate_every=plan.evaluate_every,
    )


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
        named = ", ".join(repr(site) for site in empty[:5]) + (f" and {len(empty) - 5} more" if empty[5:] else "")
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


def check_cohort(task: Task, cohort: float | int) -> None:
    """Raises ConfigError if the cohort is no part of the inside sites."""
    most = 1.0 if isinstance(cohort, float) else len(task.inside)
    if cohort > most:
        raise ConfigError(f"cohort={cohort}: expected a fraction up to 1.0, or 1 to {len(task.inside)} sites")
