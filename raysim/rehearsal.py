"""`raysim tune --dry-run`: the trials that would start, what each needs, and how long it all takes by one round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from raysim.data.wording import counted
from raysim.launch import local_fleet, planned
from raysim.rounds import federate
from raysim.search_display import SearchDisplay, duration, keys
from raysim.seats import Needs
from raysim.trials import Entry

SHOWN = 20


def rehearse(need: Needs, trials: Sequence[Mapping[str, Any]], show: SearchDisplay) -> None:
    """Print it; one round of the first trial is really played, in this process."""
    search, table = need.search, Table("trial", "keys", box=SIMPLE_HEAD)
    for number, values in enumerate(trials[:SHOWN], 1):
        table.add_row(str(number), Text(keys(Entry(number, values))))
    show.console.print(table)
    if len(trials) > SHOWN:
        show.say(f"and {len(trials) - SHOWN} more")
    cells = search.cells_of(trials[0])
    seconds = _round(need, trials[0])
    total = seconds * search.rounds * len(cells) * len(trials) / need.at_once
    federations = f", {len(cells)} federations in each" if len(cells) > 1 else ""
    show.say(f"{counted(len(trials), 'trial')} of {counted(search.rounds, 'round')}{federations}; {need.said}")
    show.say(f"{need.at_once} at once; a round takes {seconds:.2f} s in one process")
    show.say(f"about {duration(total)} in all if every trial goes through all its rounds; nothing was started")


def _round(need: Needs, values: Mapping[str, Any]) -> float:
    """Seconds of the second round, the first one opens the data; of the first, where there is but one."""
    search = need.search
    cell = next(iter(search.cells_of(values).values()))
    config = search.config(values, cell)
    task = search.task if search.task is not None and config.task == search.described else config.task.build(None)
    plan = planned(config, task, Path.cwd())
    rounds = federate(
        plan.algorithm,
        task,
        local_fleet(plan, config),
        rounds=plan.rounds,
        cohort=plan.cohort,
        seed=plan.seed,
        evaluate_every=plan.evaluate_every,
    )
    return [round.seconds for round in islice(rounds, 2)][-1]
