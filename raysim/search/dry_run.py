"""`raysim tune --dry-run`: the trials, the resources of each, and an estimate of the time from two measured rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from raysim.config.schema import Cohort
from raysim.core.formatting import pluralize
from raysim.federation.fleet import EVALUATION_PHASE
from raysim.federation.plan import build_plan
from raysim.federation.runner import federate_plan, local_fleet
from raysim.federation.validation import validate
from raysim.reporting.search_console import SearchConsole, format_duration, format_values
from raysim.search.trial_resources import TrialPlacement

MAX_TRIALS_SHOWN = 20


def print_dry_run(placement: TrialPlacement, trials: Sequence[Mapping[str, Any]], console: SearchConsole) -> None:
    """Print the trials with these values, their resources and the estimated time.

    Runs two rounds of the first trial in this process to measure the time.
    """
    spec, table = placement.spec, Table("trial", "keys", box=SIMPLE_HEAD)
    for number, values in enumerate(trials[:MAX_TRIALS_SHOWN], 1):
        table.add_row(str(number), Text(format_values(values)))
    console.console.print(table)
    if len(trials) > MAX_TRIALS_SHOWN:
        console.say(f"and {len(trials) - MAX_TRIALS_SHOWN} more trials")
    variants, seconds, actors = spec.variants_of(trials[0]), _measure_round(placement, trials[0]), _actors(placement)
    rounds = [values.get("rounds", spec.rounds) for values in trials]
    total = seconds * sum(rounds) * len(variants) / placement.concurrent_trials / actors
    federations = f", with {len(variants)} federations each" if len(variants) > 1 else ""
    most = f"{'up to ' if min(rounds) < max(rounds) else ''}{pluralize(max(rounds), 'round')}"
    console.say(f"{pluralize(len(trials), 'trial')} of {most}{federations}; {placement.description}")
    console.say(
        f"{pluralize(placement.concurrent_trials, 'concurrent trial')}; a round takes {seconds:.2f} s in one process, "
        "measured on the first trial"
    )
    shared = " and client actors share its work evenly" if actors > 1 else ""
    console.say(
        f"estimated time: {format_duration(total)} if every trial runs all its rounds{shared}; nothing was started"
    )


def _actors(placement: TrialPlacement) -> int:
    """The number of client actors that share the sites of a trial."""
    assert placement.spec.task is not None
    return max(1, min(len(placement.bundles) - 1, len(placement.spec.task.inside)))


def _measure_round(placement: TrialPlacement, values: Mapping[str, Any]) -> float:
    """Seconds of the second round plus 1 / evaluate_every of an evaluation. The first round also opens the data."""
    spec = placement.spec
    variant = next(iter(spec.variants_of(values).values()))
    config = spec.config(values, variant)
    task = spec.task if spec.task is not None and config.task == spec.task_config else config.task.build(None)
    # All sites of the cohort, and an evaluation in each round; the excess time of evaluation is subtracted below.
    timed = replace(config, evaluate_every=1, cohort=Cohort(size=config.cohort.size))
    plan = build_plan(timed, Path.cwd(), task=task)
    validate(plan)
    *_, last = islice(federate_plan(plan, local_fleet(plan)), 2)
    return last.seconds - last.phases.get(EVALUATION_PHASE, 0.0) * (1 - 1 / config.evaluate_every)
