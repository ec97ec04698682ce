"""`raysim tune --dry-run`: the trials that would start, what each needs, and how long it all takes, by two rounds."""

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
from raysim.federation.runner import local_fleet, plan_rounds
from raysim.federation.validation import validate
from raysim.reporting.search_console import SearchConsole, format_duration, format_keys
from raysim.search.trial_resources import TrialPlacement
from raysim.search.trial_store import TrialRecord

SHOWN = 20


def print_dry_run(need: TrialPlacement, trials: Sequence[Mapping[str, Any]], show: SearchConsole) -> None:
    """Print it; two rounds of the first trial are really played, in this process."""
    search, table = need.search, Table("trial", "keys", box=SIMPLE_HEAD)
    for number, values in enumerate(trials[:SHOWN], 1):
        table.add_row(str(number), Text(format_keys(TrialRecord(number, values))))
    show.console.print(table)
    if len(trials) > SHOWN:
        show.say(f"and {len(trials) - SHOWN} more")
    cells, seconds = search.variants_of(trials[0]), _round(need, trials[0])
    rounds = [values.get("rounds", search.rounds) for values in trials]
    total = seconds * sum(rounds) * len(cells) / need.concurrent_trials / _actors(need)
    federations = f", {len(cells)} federations in each" if len(cells) > 1 else ""
    most = f"{'up to ' if min(rounds) < max(rounds) else ''}{pluralize(max(rounds), 'round')}"
    show.say(f"{pluralize(len(trials), 'trial')} of {most}{federations}; {need.description}")
    show.say(
        f"{need.concurrent_trials} at once; a round takes {seconds:.2f} s in one process, as the first trial has it"
    )
    shared = ", client actors share its work evenly" if _actors(need) > 1 else ""
    show.say(
        f"about {format_duration(total)} in all if every trial goes through all its rounds{shared}; nothing was started"
    )


def _actors(need: TrialPlacement) -> int:
    """The client actors that a trial's sites are shared out to."""
    assert need.search.task is not None
    return max(1, min(len(need.bundles) - 1, len(need.search.task.inside)))


def _round(need: TrialPlacement, values: Mapping[str, Any]) -> float:
    """Seconds of a round, with its share of the evaluation: of the second one, for the first opens the data."""
    search = need.search
    cell = next(iter(search.variants_of(values).values()))
    config = search.config(values, cell)
    task = search.task if search.task is not None and config.task == search.task_config else config.task.build(None)
    # All sites of the cohort, and an evaluation in each round: its share is taken off below.
    timed = replace(config, evaluate_every=1, cohort=Cohort(size=config.cohort.size))
    plan = build_plan(timed, Path.cwd(), task=task)
    validate(plan)
    *_, last = islice(plan_rounds(plan, local_fleet(plan)), 2)
    return last.seconds - last.phases.get(EVALUATION_PHASE, 0.0) * (1 - 1 / config.evaluate_every)
