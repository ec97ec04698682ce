"""Writes the files of an evaluation without training: cases.parquet and summary.json, as in a run directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raysim.core.atomic_io import write_json
from raysim.core.contracts import Task
from raysim.core.results import CaseScores, RunOutcome, Score, role_of
from raysim.storage.case_table import write_cases
from raysim.storage.recorder import aggregate, direction
from raysim.storage.run_directory import SUMMARY_FILE
from raysim.storage.score_notes import score_notes


def write_evaluation(
    directory: Path,
    task: Task,
    scores: Sequence[Score],
    cases: Sequence[CaseScores],
    *,
    chosen: str,
    facts: Mapping[str, Any],
    number: int,
    rounds: tuple[int, int],
    anonymous: bool,
) -> dict[str, Any]:
    """Write the scores of round `number`; returns the content of summary.json, with `facts` added.

    `chosen` is the main metric, role/split/metric. `rounds` are the last and the best round of the run; 0: no round.
    """
    last, best = rounds
    write_cases(directory, task, {number: cases}, last=last, best=best, anonymous=anonymous)
    metrics = aggregate(scores, task.score.better)
    sites: dict[str, dict[str, Any]] = {
        site: {"role": role_of(site, task.inside)} for site in (*task.inside, *task.outside)
    }
    for score in scores:
        sites[score.site][f"{score.split}/{score.metric}"] = score.value
    by_site = {site: {name: found[name] for name in found if name != "role"} for site, found in sites.items()}
    summary = {
        "schema_version": 1,
        "status": RunOutcome.DONE,
        **facts,
        "rounds": number,
        "seconds": 0.0,  # of training
        "bytes": {"up": 0, "down": 0, "between_sites": 0},
        "failures": {"incidents": 0, "left_out": 0, "seconds_lost": 0.0},
        "best": {"round": None, "reason": "only one round was evaluated"},
        "metric": chosen,
        "direction": direction(chosen, task.score.better),
        "better": dict(task.score.better),
        "evaluated_round": number,
        "metrics": metrics,
        "sites": sites,
        "notes": score_notes(task, by_site, chosen, has_chosen=chosen in metrics),
    }
    write_json(directory / SUMMARY_FILE, summary)
    return summary
