"""Reads the values by case of groups of runs, and refuses groups that were not evaluated on the same cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from raysim.core.errors import ConfigError
from raysim.core.formatting import hash_name, join_names, pluralize
from raysim.core.suggestions import did_you_mean
from raysim.reporting.case_scores import AreaScores, GroupScores, MeanScores
from raysim.reporting.finished_runs import RunRecord
from raysim.reporting.run_groups import FOLD, Repetition, RunGroup, differing_keys
from raysim.storage.run_directory import CASES_FILE

AUC, AUC_OF = "auc", "auc_"  # of two classes; of one of several labels
NOT_METRICS = ("label", "logit_", "prediction")  # values by case that are not scores
KEPT = ["site", "role", "case", "image", "patient", "metric", "value"]


@dataclass(frozen=True)
class ScoreName:
    """The score that is compared: role/split/metric, in the best or the last round."""

    role: str
    split: str
    metric: str
    round: Literal["best", "last"]

    def __str__(self) -> str:
        return f"{self.role}/{self.split}/{self.metric}"

    @property
    def columns(self) -> list[str]:
        """The values by case from which the score is computed."""
        plain, at, predictor = self.metric.partition("@")
        names: tuple[str, ...] = ("label", "logit_0", "logit_1") if plain == AUC else (plain,)
        if plain.startswith(AUC_OF):
            label = plain.removeprefix(AUC_OF)
            names = (f"label_{label}", f"logit_{label}")
        return [f"{name}{at}{predictor}" for name in names]


def choose_score(
    runs: Sequence[RunRecord], metric: str | None, split: str | None, round: Literal["best", "last"] | None
) -> ScoreName:
    """The score to compare. `metric` is a name or role/split/metric; by default the main metric of the runs.

    Raises ConfigError if the runs have no such values.
    """
    parts = (metric or "").split("/")
    if metric is not None and len(parts) not in (1, 3):
        raise ConfigError(f"--metric {metric}: expected a metric such as dice, or role/split/metric")
    role, given_split, name = parts if len(parts) == 3 else (None, None, metric)
    if split and given_split and split != given_split:
        raise ConfigError(f"--metric {metric} and --split {split} contradict each other; remove --split")
    chosen, wanted_split = _round(runs, round), given_split or split or "test"
    values = _read_cases(runs[0], ["role", "split", "metric", chosen])
    values = values[values[chosen] & (values["split"] == wanted_split)]
    roles = [each for each in ("inside", "outside") if (values["role"] == each).any()]
    if not roles or role not in (None, *roles):
        wanted = f"{role}/{wanted_split}" if role else wanted_split
        raise ConfigError(f"{runs[0].path} has no {wanted} cases; use another --split, or runs with such cases")
    role = role or roles[0]
    possible = _metrics(values[values["role"] == role]["metric"].unique().tolist())
    if name is None:
        main = str(runs[0].summary["metric"]).split("/", 2)[2]
        name = main if main in possible else next(iter(possible), None)
    if name not in possible:
        raise ConfigError(
            f"--metric {name}: {runs[0].path / CASES_FILE} has no such values"
            f"{did_you_mean(str(name), possible)}; expected one of {', '.join(possible) or 'none'}"
        )
    return ScoreName(role, wanted_split, name, chosen)


def _round(runs: Sequence[RunRecord], requested: Literal["best", "last"] | None) -> Literal["best", "last"]:
    """`requested`; by default the best round, if all runs have one. Raises ConfigError for a run without this round."""
    rounds = [_rounds(run) for run in runs]
    chosen = requested or ("best" if all("best" in each for each in rounds) else "last")
    if without := next((run for run, each in zip(runs, rounds, strict=True) if chosen not in each), None):
        if without.is_evaluation:
            raise ConfigError(
                f"{without.path} is not an evaluation of the {chosen} round; give evaluations of one round (raysim "
                f"evaluate --round {chosen})"
            )
        raise ConfigError(f"--round best: {without.path} has no best round; use --round last")
    return chosen


def _rounds(run: RunRecord) -> set[str]:
    """Those of `best` and `last` that the run has; an evaluation has one round, which may be both."""
    if run.is_evaluation:
        flags = _read_cases(run, ["best", "last"])
        return {name for name in ("best", "last") if flags[name].any()}
    return {"last"} if run.summary.get("best", {}).get("round") is None else {"best", "last"}


def _metrics(names: Sequence[str]) -> list[str]:
    """The metrics with values by case, the AUC of two classes, and the AUC of each of several labels."""
    found = [name for name in names if not name.startswith(NOT_METRICS)]
    found += [f"{AUC_OF}{name.removeprefix('label_')}" for name in names if name.startswith("label_")]
    if not any(name.partition("@")[0] == "label" for name in names):
        return found
    suffixes = [name.removeprefix("logit_1") for name in names if name.partition("@")[0] == "logit_1"]
    return [*found, *(f"{AUC}{suffix}" for suffix in suffixes if f"logit_2{suffix}" not in names)]


def read_groups(groups: Sequence[RunGroup], scores: Sequence[ScoreName]) -> tuple[list[GroupScores], list[str]]:
    """The score of each group, and notes. Raises ConfigError if two repetitions do not have the same cases."""
    runs = [run for group in groups for run in group.runs]
    hashed = any(_is_anonymous(run) for run in runs)
    read = [
        [_read_repetition(each, score, hashed) for each in group.repetitions]
        for group, score in zip(groups, scores, strict=True)
    ]
    first = read[0][0]
    _check_names(first, runs)
    for group, frames in zip(groups, read, strict=True):
        for repetition, frame in zip(group.repetitions, frames, strict=True):
            _check_same_cases(first, groups[0].repetitions[0], frame, repetition, scores[0])
    found = [_scores(*each) for each in zip(read, scores, strict=True)]
    for group, of_group, score in zip(groups, found, scores, strict=True):
        if of_group.sites.empty:
            cause = "no site has cases of both classes" if len(score.columns) > 1 else "no case has a value"
            raise ConfigError(f"{score} of {group.name}: {cause}; use another --metric")
    return found, _patient_notes(first)


def _is_anonymous(run: RunRecord) -> bool:
    return bool(run.keys.get("anonymous_cases"))


def _check_names(cases: pd.DataFrame, runs: Sequence[RunRecord]) -> None:
    """Raises ConfigError if cases have no names and the runs have different data."""
    differing = [key for key in differing_keys(runs) if key.startswith("task.data.")]
    if differing and cases["unnamed"].any():
        raise ConfigError(
            f"cases without names cannot be paired, because the runs differ in {join_names(differing)}; add a column "
            "image or patient to the table, or give runs with the same data"
        )


def _read_repetition(repetition: Repetition, score: ScoreName, hashed: bool) -> pd.DataFrame:
    """A row by (site, case), with the columns of the score, `patient`, and `unnamed`; `hashed` as in `_read_run`.

    The folds of a repetition are pooled. Each fold has other test cases of the inside sites. All folds have the same
    cases of the outside sites, whose values are averaged.
    """
    rows = pd.concat([_read_run(run, score, hashed) for run in repetition.runs]).groupby(level=["site", "case"])
    return rows[score.columns].mean().join(rows[["patient", "unnamed"]].first())


def _read_run(run: RunRecord, score: ScoreName, hashed: bool) -> pd.DataFrame:
    """The values of a run. `hashed`: names of cases are hashed, as in the runs with `anonymous_cases`."""
    filters = [("split", "==", score.split), (score.round, "==", True), ("metric", "in", score.columns)]
    rows = _read_cases(run, KEPT, filters)
    rows = rows[rows["role"] == score.role]
    if absent := set(score.columns) - set(rows["metric"]):
        raise ConfigError(
            f"{run.path} has no values of {', '.join(sorted(absent))} for {score.role}/{score.split} cases; use "
            "another --metric, or give the other runs"
        )
    if hashed and not _is_anonymous(run):
        names = rows[["image", "patient"]].map(hash_name, na_action="ignore").astype("string")
        rows = rows.assign(image=names["image"], patient=names["patient"])
    is_fold = run.keys.get(FOLD) is not None and score.role == "inside"
    number = rows["case"].astype(str) + f" of fold {run.keys.get(FOLD)}" * is_fold
    numbered = ("patient " + rows["patient"] + ", case " + number).fillna("case " + number)
    rows = rows.assign(case=rows["image"].fillna(numbered), unnamed=rows["image"].isna() & rows["patient"].isna())
    names = rows.drop_duplicates(["site", "case"]).set_index(["site", "case"])[["patient", "unnamed"]]
    return rows.pivot(index=["site", "case"], columns="metric", values="value").join(names)


def _read_cases(run: RunRecord, columns: list[str], filters: list[tuple[str, str, Any]] | None = None) -> pd.DataFrame:
    """The columns of cases.parquet. Raises ConfigError for a file that cannot be read."""
    try:
        return pd.read_parquet(run.path / CASES_FILE, columns=columns, filters=filters)
    except (OSError, ValueError, LookupError, NotImplementedError) as error:  # those of pyarrow are subclasses
        reason = " ".join(str(error).split())
        raise ConfigError(f"cannot read {run.path / CASES_FILE}: {reason:.200}; give the other runs") from error


def _check_same_cases(
    first: pd.DataFrame, first_repetition: Repetition, frame: pd.DataFrame, repetition: Repetition, score: ScoreName
) -> None:
    only_first, only_other = first.index.difference(frame.index), frame.index.difference(first.index)
    if len(only_first) or len(only_other):
        paths = [_paths(first_repetition), _paths(repetition)]
        parts = [
            f"{len(only)} only in {path}, such as {' '.join(map(str, only[0]))}"
            for only, path in zip((only_first, only_other), paths, strict=True)
            if len(only)
        ]
        raise ConfigError(
            f"{paths[0]} and {paths[1]} have different {score.role}/{score.split} cases: {', '.join(parts)}; give runs "
            "that were evaluated on the same cases"
        )


def _paths(repetition: Repetition) -> str:
    return join_names([run.path for run in repetition.runs])


def _scores(frames: Sequence[pd.DataFrame], score: ScoreName) -> GroupScores:
    def table(column: str) -> pd.DataFrame:
        return pd.concat([frame[column] for frame in frames], axis=1, keys=range(len(frames)))

    if len(score.columns) == 1:
        return MeanScores(table(score.columns[0]))
    label, *logits = score.columns
    odds = table(logits[0]) if len(logits) == 1 else table(logits[1]) - table(logits[0])
    return AreaScores(frames[0][label], odds)


def _patient_notes(cases: pd.DataFrame) -> list[str]:
    """A note if patients have several cases, because intervals and tests take cases as independent."""
    sizes = cases["patient"].dropna().groupby(level="site").value_counts()
    several = int((sizes > 1).sum())
    if not several:
        return []
    return [f"{pluralize(several, 'patient')} with several cases: intervals and tests take cases as independent"]
