"""`report.html`: the results of a run on one self-contained page, without network access or scripts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import FileSystemLoader

from raysim.config.yaml_loader import load_written_yaml
from raysim.core.errors import ConfigError
from raysim.core.formatting import format_score, join_names, pluralize
from raysim.core.results import FailureAction, RunOutcome
from raysim.reporting.case_plots import CaseValues, case_plots, confusion_matrices
from raysim.reporting.console import column_heading, equals_global
from raysim.reporting.page import environment, write_page
from raysim.reporting.pictures import read_pictures
from raysim.reporting.plots import plots
from raysim.storage.event_log import SITES
from raysim.storage.json_lines import read_jsonl
from raysim.storage.run_directory import CASES_FILE, FAILURES_FILE, SUMMARY_FILE

TEMPLATE = Path(__file__).with_suffix(".html.j2")
SHOWN = 50  # rows in the table of failures
CAUSES = 12  # rows in the table of causes
WORST = 5  # sites in the list of worst sites
Failure = Mapping[str, Any]  # a line of failures.jsonl
FILES = {  # in a run directory
    "summary.json": "the scores of the last and the best round",
    "cases.parquet": "the values of each case",
    "rounds.parquet": "a row for each round",
    "sites.parquet": "the scores and bytes of each site in each round",
    "models/README.md": "the models, and the code that loads them",
    "pictures/pictures.json": "the pictures of cases, and the summary of the data",
    "failures.jsonl": "failures and lost time",
    "config.yaml": "the configuration",
    "env.json": "the versions of packages",
    "placement.json": "the actor and node of each site",
}


def write_report(out: Path) -> Path:
    """Write report.html of the run in `out` from the files there; returns its path.

    Only summary.json must exist. Raises OSError if it does not or if the disk is full, ValueError if it is not JSON.
    """
    failures = read_or(out / FAILURES_FILE, _failures, [])
    sections = run_sections(out, failures)
    summary = sections["summary"]
    config = read_or(out / "config.yaml", Path.read_text, "")
    placement = read_or(out / "placement.json", _json, [])
    declared = read_or(out / "config.yaml", lambda path: load_written_yaml(path.read_text(), path.name), None) or {}
    page = template(TEMPLATE).render(
        name=out.name,
        **sections,
        declared=declared,
        config=config,
        env=read_or(out / "env.json", _json, {}),
        failure_sentences=failure_sentences(failures, RunOutcome(summary["status"]), declared.get("min_replies")),
        causes=by_cause(failures),
        failures=failures,
        ended=next((failure for failure in reversed(failures) if failure["action"] == FailureAction.RUN_ENDED), None),
        evaluations=_evaluations(summary),
        columns=_columns(summary["sites"]),
        places={place["site"]: place for place in placement},
        worst=_worst(summary),
        files={name: about for name, about in FILES.items() if (out / name).exists()},
    )
    path = out / "report.html"
    write_page(path, page)
    return path


def run_sections(out: Path, failures: Sequence[Failure] = ()) -> dict[str, Any]:
    """The values of run_sections.html.j2 and the traffic of the sites, from the files of the run in `out`.

    Raises OSError or ValueError if summary.json does not exist or is not JSON.
    """
    summary = json.loads((out / SUMMARY_FILE).read_text())
    rounds = read_or(out / "rounds.parquet", pd.read_parquet, pd.DataFrame({"round": []}))
    site_rows = read_or(out / "sites.parquet", pd.read_parquet, SITES.empty_table().to_pandas())
    cases = read_or(out / CASES_FILE, lambda path: CaseValues(pd.read_parquet(path)), None)
    shown = read_pictures(out)
    return {
        "summary": summary,
        "plots": list(plots(summary, rounds, site_rows, {failure["round"] for failure in failures})),
        "cases": cases,
        "case_plots": list(case_plots(cases, summary["metric"].split("/", 2)[-1], shown.classes)) if cases else [],
        "confusion": confusion_matrices(cases, shown.classes) if cases else [],
        "shown": shown,
        "traffic": _traffic(site_rows),
    }


def template(path: Path) -> Any:
    """The template in `path`, with the filters of the reports of runs and searches."""
    made = environment()
    made.filters |= {"heading": column_heading, "listed": join_names}
    made.loader = FileSystemLoader(path.parent)
    made.globals |= {"SHOWN": SHOWN, "CAUSES": CAUSES}
    return made.from_string(path.read_text(encoding="utf-8"))


def read_or(path: Path, parse: Callable[[Path], Any], otherwise: Any) -> Any:
    """The parsed file, or `otherwise`: if the run ended early, the file may be missing, empty or incomplete."""
    try:
        return parse(path) if path.is_file() else otherwise  # a named pipe would block
    except (OSError, ValueError, ConfigError):
        return otherwise


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


def _failures(path: Path) -> list[Failure]:
    """The failures in a file. Only a failure that ended the run keeps its traceback, because there may be many."""
    ended = FailureAction.RUN_ENDED
    return [each if each["action"] == ended else {**each, "remote": ""} for each in read_jsonl(path)]


def failure_sentences(failures: Sequence[Failure], outcome: RunOutcome, min_replies: Any) -> list[str]:
    """Sentences that summarise the failures and the actions that were taken; empty without failures."""
    by: dict[str, list[Failure]] = {}
    for failure in failures:
        by.setdefault(failure["action"], []).append(failure)
    sentences = []
    if left_out := by.get(FailureAction.LEFT_OUT):
        replies = _sites(left_out)
        were = f"{replies} replies were" if replies > 1 else "1 reply was"
        within = pluralize(len({failure["round"] for failure in left_out}), "round")
        allowed = f" (allowed by min_replies={min_replies})" if min_replies is not None else ""
        sentences.append(f"{were} left out in {within}{allowed}.")
    if again := by.get(FailureAction.RETRIED):
        losses, tries = pluralize(len(again), "time"), pluralize(_sites(again), "call")
        sentences.append(f"Client actors were lost {losses}; {tries} at sites ran again. The results do not change.")
    if back := by.get(FailureAction.ROLLED_BACK):
        sentences.append(f"The run returned to its last checkpoint {pluralize(len(back), 'time')}.")
    if unfit := by.get(FailureAction.ACTOR_DROPPED):
        sentences.append(
            f"{pluralize(len(unfit), 'client actor')} could not run on the assigned node; the run continued with the "
            "other actors."
        )
    ended = len(by.get(FailureAction.RUN_ENDED, ()))
    if ended > (outcome is RunOutcome.FAILED):  # the failure that ended the run has a separate section
        resumed = ", and it was resumed" if outcome is RunOutcome.DONE else ""
        sentences.append(f"A failure ended the run {pluralize(ended, 'time')}{resumed}.")
    if sentences:
        seconds = sum(failure["seconds"] for failure in failures)
        sentences.append(f"In all, {pluralize(len(failures), 'failure')} cost {seconds:.1f} s of work.")
    return sentences


def _sites(failures: Sequence[Failure]) -> int:
    return sum(len(failure["sites"]) for failure in failures)


def by_cause(failures: Sequence[Failure]) -> list[dict[str, Any]]:
    """Failures, sites and seconds lost by cause, the costliest first. Causes that differ only in numbers are merged."""
    groups: dict[str, list[Failure]] = {}
    for failure in failures:
        groups.setdefault(re.sub(r"\d[\d.]*", "…", failure["cause"]), []).append(failure)
    found = []
    for cause, group in groups.items():
        same = len({failure["cause"] for failure in group}) == 1
        seconds = sum(failure["seconds"] for failure in group)
        cause = group[0]["cause"] if same else cause
        found.append({"cause": cause, "failures": len(group), "sites": _sites(group), "seconds": seconds})
    return sorted(found, key=lambda row: (-row["seconds"], -row["failures"], row["cause"]))


def _evaluations(summary: Any) -> list[dict[str, Any]]:
    """The evaluations that are shown: the last one, and that of the best round if this is another round."""
    best, number = summary["best"], summary["evaluated_round"]
    also = f", also the best by {best['metric']}" if best["round"] == number and number else ""
    last = {"title": f"Last evaluated round: {number}{also}", "metrics": _metrics(summary), "sites": summary["sites"]}
    if best["round"] in (None, number):
        return [last]
    title = f"Best round by {best['metric']}: {best['round']}"
    return [last, {"title": title, "metrics": _metrics(summary | {"metrics": best["metrics"]}), "sites": best["sites"]}]


def _metrics(summary: Any) -> dict[str, Any]:
    """The final metrics, without those of the global model that equal those of the method's predictor."""
    found = summary["metrics"]
    chosen = summary["metric"]
    return {name: kinds for name, kinds in found.items() if name == chosen or not _repeats(name, found)}


def _repeats(name: str, metrics: Any) -> bool:
    plain = name.removesuffix("@global")
    return plain != name and metrics[name] == metrics.get(plain)


def _columns(sites: Any) -> list[str]:
    """The names of all scores of the sites. A score of the global model, if it differs, follows the method's score."""
    complete = sorted(sites.values(), key=len, reverse=True)
    names = [name for name in dict.fromkeys(name for scores in complete for name in scores) if name != "role"]
    plain = list(dict.fromkeys(name.removesuffix("@global") for name in names))
    kept = [name for name in names if not equals_global(name, sites)]
    return sorted(kept, key=lambda name: (plain.index(name.removesuffix("@global")), name))


def _traffic(site_rows: pd.DataFrame) -> list[dict[str, Any]]:
    """For each `site` the number of `rounds` in which it sent or received bytes, and the bytes by direction."""
    found = site_rows[site_rows["metric"].str.startswith("bytes_")]
    rounds = found.groupby("site")["round"].nunique()
    sizes = found.pivot_table("value", "site", "metric", "sum", fill_value=0.0)
    rows: list[dict[str, Any]] = sizes.assign(rounds=rounds).reset_index().to_dict("records")  # type: ignore[assignment]
    return rows


def _worst(summary: Any) -> list[str]:
    """The sites with the worst scores, each followed by its score."""
    sites, score = summary["sites"], summary["metric"].split("/", 1)[1]
    known = [site for site in sites if sites[site].get(score) is not None]
    known.sort(key=lambda site: sites[site][score], reverse=summary["direction"] == "lower")
    return [f"{site} {format_score(sites[site][score])}" for site in known[:WORST]]
