"""`raysim tune --dry-run`: the trials, the resources of each, and an estimate of the time of the whole command."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from raysim.config.schema import Cohort
from raysim.core.events import RoundEvent
from raysim.core.formatting import pluralize
from raysim.federation.fleet import EVALUATION_PHASE
from raysim.reporting.search_console import SearchConsole, format_duration, format_values
from raysim.search.spec import SearchSpec
from raysim.search.trainable import prepare_process
from raysim.search.trial_cache import TrialCache
from raysim.search.trial_resources import TrialPlacement

MAX_TRIALS_SHOWN = 20
MAX_MEASURED = 8  # trials whose rounds are measured


@dataclass(frozen=True)
class MeasuredTimes:
    """Seconds: a round of one federation; from the start of the command to the first round; the report and the end."""

    round: float
    start: float
    end: float


def measure_times(placement: TrialPlacement, trials: Sequence[Mapping[str, Any]]) -> MeasuredTimes:
    """Run two rounds of the first trials on the connected Ray, each in a process like that of a trial, all at once.

    `start` is the time of this command until now, plus the start of these processes.
    """
    before = time.time() - import_module("psutil").Process(os.getpid()).create_time()  # psutil comes with Ray
    began = time.perf_counter()
    import_module("matplotlib.figure")  # takes most of the time of a report
    report, began = time.perf_counter() - began, time.perf_counter()
    bundle = max(placement.bundles, key=lambda each: each.get("CPU", 0.0))
    options: dict[str, Any] = {"num_cpus": bundle.get("CPU", 0), "num_gpus": bundle.get("GPU", 0), "max_retries": 0}
    task = ray.remote(_measure_in_new_process).options(**options)
    measured = trials[: _concurrent_now(placement, bundle)]
    seconds, inside = zip(*ray.get([task.remote(placement.spec, values) for values in measured]), strict=True)
    start = before + time.perf_counter() - began - max(inside)
    return MeasuredTimes(sum(seconds) / len(seconds), start, report)


def _concurrent_now(placement: TrialPlacement, bundle: Mapping[str, float]) -> int:
    """The number of concurrent trials, up to MAX_MEASURED, of which the first bundles are free now; at least 1."""
    free = ray.available_resources()
    fitting = [int(free.get(kind, 0.0) / amount) for kind, amount in bundle.items() if amount]
    return max(1, min(placement.concurrent_trials, MAX_MEASURED, *fitting))


def _measure_in_new_process(spec: SearchSpec, values: Mapping[str, Any]) -> tuple[float, float]:
    """Seconds of a round, and of the rounds that were run to measure it."""
    prepare_process(spec)
    began = time.perf_counter()
    return measure_round(spec, values), time.perf_counter() - began


def measure_round(spec: SearchSpec, values: Mapping[str, Any]) -> float:
    """Seconds of the second round with its records, and with 1 / evaluate_every of its evaluation.

    The first round is not used, because it also opens the data.
    """
    variant = next(iter(spec.variants_of(values).values()))
    config = replace(spec, backend="local").config(values, variant)
    # All sites of the cohort, and an evaluation in each round; the excess time of evaluation is subtracted below.
    timed = replace(config, evaluate_every=1, cohort=Cohort(size=config.cohort.size))
    with TemporaryDirectory() as folder, closing(TrialCache(spec).run(timed, Path(folder))) as events:
        *_, last = islice((event.round for event in events if isinstance(event, RoundEvent)), 2)
    assert last is not None  # the round is run in this process
    recording = last.phases.get("recording", 0.0)
    return last.seconds + recording - last.phases.get(EVALUATION_PHASE, 0.0) * (1 - 1 / config.evaluate_every)


def print_dry_run(
    placement: TrialPlacement, trials: Sequence[Mapping[str, Any]], times: MeasuredTimes, console: SearchConsole
) -> None:
    """Print the trials with these values, their resources and the estimated time."""
    spec, table = placement.spec, Table("trial", "keys", box=SIMPLE_HEAD)
    for number, values in enumerate(trials[:MAX_TRIALS_SHOWN], 1):
        table.add_row(str(number), Text(format_values(values)))
    console.console.print(table)
    if len(trials) > MAX_TRIALS_SHOWN:
        console.say(f"and {len(trials) - MAX_TRIALS_SHOWN} more trials")
    variants, actors = spec.variants_of(trials[0]), _actors(placement)
    rounds = [values.get("rounds", spec.rounds) for values in trials]
    computing = times.round * sum(rounds) * len(variants) / placement.concurrent_trials / actors
    federations = f", with {len(variants)} federations each" if len(variants) > 1 else ""
    most = f"{'up to ' if min(rounds) < max(rounds) else ''}{pluralize(max(rounds), 'round')}"
    console.say(f"{pluralize(len(trials), 'trial')} of {most}{federations}; {placement.description}")
    concurrent = pluralize(placement.concurrent_trials, "concurrent trial")
    console.say(f"{concurrent}; a round takes {times.round:.2f} s in one process")
    shared = " and client actors share its work evenly" if actors > 1 else ""
    console.say(
        f"estimated time: {format_duration(times.start + computing + times.end)} "
        f"({format_duration(times.start)} until the first round, {format_duration(computing)} for the rounds, "
        f"{format_duration(times.end)} for the report and the shutdown of Ray) if every trial runs all its "
        f"rounds{shared}; nothing was started"
    )


def _actors(placement: TrialPlacement) -> int:
    """The number of client actors that share the sites of a trial."""
    assert placement.spec.task is not None
    return max(1, min(len(placement.bundles) - 1, len(placement.spec.task.inside)))
