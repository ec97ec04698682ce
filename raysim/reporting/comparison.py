"""Compares groups of runs by a score: mean and deviation over seeds, intervals, paired tests, sites, bytes, seconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from raysim.core.errors import ConfigError
from raysim.core.formatting import join_names, pluralize
from raysim.core.suggestions import did_you_mean
from raysim.reporting.case_reader import AUC, AUC_OF, ScoreName, choose_score, read_groups
from raysim.reporting.case_scores import GroupScores, PairedResult
from raysim.reporting.finished_runs import RunRecord, comparable_runs
from raysim.reporting.run_groups import FOLD, RunGroup, differing_keys, group_runs, other_differences
from raysim.reporting.statistics import PairedTest, holm
from raysim.storage.run_directory import reading_runs

FOLDS = "task.data.folds"


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """The options of a comparison; None is the default that `raysim compare --help` describes."""

    by: str | None = None
    round: Literal["best", "last"] | None = None
    metric: str | None = None
    split: str | None = None
    test: PairedTest = "wilcoxon"
    reference: str | None = None


@dataclass(frozen=True, kw_only=True)
class GroupResult:
    """The result of a group. Standard deviations over seeds are NaN with a single seed.

    mean: the mean over sites of the means over seeds. low, high: its 95 % interval.
    difference: mean minus that of the reference, with p_value after Holm's correction and effect; None for the
    reference itself.
    sites: mean and deviation over seeds of each site. bytes, seconds: means over runs.
    """

    name: str
    seeds: int
    mean: float
    deviation: float
    low: float
    high: float
    difference: float | None
    p_value: float | None
    effect: float | None
    sites: Mapping[str, tuple[float, float]]
    bytes: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The results of all groups, on the same cases. better: the direction of the score, if the task declares it."""

    score: ScoreName
    better: Literal["higher", "lower"] | None
    test: str
    reference: str
    cases: int
    groups: Sequence[GroupResult]
    notes: Sequence[str]

    def worst_site(self, group: GroupResult) -> tuple[str, float] | None:
        """The site with the worst mean over seeds, and this mean; None without a direction."""
        if self.better is None:
            return None
        means = {site: mean for site, (mean, _) in group.sites.items()}
        site = (min if self.better == "higher" else max)(means, key=lambda name: means[name])
        return site, means[site]


def compare(folders: Sequence[Path], options: CompareOptions) -> Comparison:
    """The comparison of the runs in `folders`, which may be runs, searches or folders with runs.

    Raises ConfigError for runs that have not finished, have different tasks or have different cases.
    """
    with reading_runs(folders):
        return _compare(folders, options)


def _compare(folders: Sequence[Path], options: CompareOptions) -> Comparison:
    runs, omitted = comparable_runs(folders)
    groups = group_runs(runs, options.by)
    reference = _reference(groups, options.reference)
    score = choose_score(runs, options.metric, options.split, options.round)
    found = compare_groups(groups, [score] * len(groups), reference, options.test)
    main = str(runs[0].summary["metric"]).split("/", 2)[2]
    other = options.metric is None and score.metric != main
    notes = [f"the main metric {main} has no values by case, so {score.metric} is compared"] if other else []
    return replace(found, notes=[*notes, *omitted, *_notes(groups, runs, options.by), *found.notes])


def compare_groups(
    groups: Sequence[RunGroup], names: Sequence[ScoreName], reference: int = 0, test: PairedTest = "wilcoxon"
) -> Comparison:
    """The comparison of each group by its score with that of the group number `reference`.

    Raises ConfigError for groups that were not evaluated on the same cases.
    """
    scores, notes = read_groups(groups, names)
    paired = [scores[n].paired(scores[reference], test) for n in range(len(groups)) if n != reference]
    others = iter(zip(paired, holm([each.p_value for each in paired]), strict=True))
    results = [
        _result(group, of_group, scores[reference], None if number == reference else next(others))
        for number, (group, of_group) in enumerate(zip(groups, scores, strict=True))
    ]
    metric = names[reference].metric.partition("@")[0]
    is_area = metric == AUC or metric.startswith(AUC_OF)
    better = groups[reference].runs[0].summary.get("better", {})
    return Comparison(
        score=names[reference],
        better=better.get(metric, "higher" if is_area else None),
        test="delong" if is_area else test,
        reference=groups[reference].name,
        cases=scores[reference].cases,
        groups=results,
        notes=[*notes, *_pair_notes(paired)],
    )


def _reference(groups: Sequence[RunGroup], name: str | None) -> int:
    names = [group.name for group in groups]
    if name is None:
        return 0
    if name not in names:
        raise ConfigError(f"--reference {name}: no such group{did_you_mean(name, names)}; expected {', '.join(names)}")
    return names.index(name)


def _result(
    group: RunGroup, scores: GroupScores, reference: GroupScores, paired: tuple[PairedResult, float] | None
) -> GroupResult:
    sites, runs = scores.sites, group.runs
    means = sites.mean(axis=1)  # of each repetition
    low, high = scores.interval
    return GroupResult(
        name=group.name,
        seeds=len(group.repetitions),
        mean=float(means.mean()),
        deviation=float(means.std(ddof=1)),
        low=low,
        high=high,
        difference=None if paired is None else float(means.mean() - reference.sites.mean(axis=1).mean()),
        p_value=None if paired is None else paired[1],
        effect=None if paired is None else paired[0].effect,
        sites={str(site): (float(each.mean()), float(each.std(ddof=1))) for site, each in sites.items()},
        bytes=float(np.mean([sum(run.summary["bytes"].values()) for run in runs])),
        seconds=float(np.mean([run.summary["seconds"] for run in runs])),
    )


def _notes(groups: Sequence[RunGroup], runs: Sequence[RunRecord], by: str | None) -> list[str]:
    notes = []
    if repeated := len(runs) - sum(len(group.runs) for group in groups):
        notes.append(f"left out: {pluralize(repeated, 'trial')} of a search with the values of another one")
    if len({len(group.repetitions) for group in groups}) > 1:
        notes.append("the groups have different numbers of seeds")
    pooled = dict.fromkeys(key for group in groups for key in differing_keys(group.runs)) if by is not None else {}
    if pooled:
        notes.append(f"runs of a group also differ in {join_names([*pooled])}")
    if other := [key for key in other_differences(runs, by) if key not in pooled]:
        notes.append(f"the groups also differ in {join_names(other)}")
    chosen_by = {run.summary.get("best", {}).get("metric") for run in runs} - {None}
    if len(chosen_by) > 1:
        notes.append(f"the best rounds were chosen by different metrics: {join_names(sorted(chosen_by))}")
    incomplete = Counter(
        group.name
        for group in groups
        for each in group.repetitions
        if (folds := each.runs[0].keys.get(FOLDS)) and len({run.keys.get(FOLD) for run in each.runs}) < folds
    )
    notes += [f"{name}: not all folds are given, so the scores are those of a part of the cases" for name in incomplete]
    return notes


def _pair_notes(paired: Sequence[PairedResult]) -> list[str]:
    left_out = max((each.left_out for each in paired), default=0)
    return [f"a test leaves out up to {pluralize(left_out, 'case')} without a value"] if left_out else []
