"""Writes the table cases.parquet: the values of each case in the last and in the best round."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from raysim.core.atomic_io import replacing
from raysim.core.contracts import CaseName, Task
from raysim.core.formatting import hash_name
from raysim.core.results import CaseScores, role_of
from raysim.storage.run_directory import CASES_FILE

COLUMNS = ("round", "last", "best", "site", "role", "split", "case", "image", "patient", "predictor", "metric", "value")


def write_cases(
    directory: Path,
    task: Task,
    cases: Mapping[int, Sequence[CaseScores]],
    *,
    last: int,
    best: int,
    anonymous: bool = False,
) -> None:
    """Write cases.parquet, with a row for each case and metric of the rounds in `cases`.

    `last` and `best` are the rounds of the last and the best evaluation. With `anonymous`, the names of images and
    patients are replaced by the start of their SHA-256. For a task without values by case, no file is written.
    """
    frames = [
        _frame(task, scores, anonymous).assign(round=number, last=number == last, best=number == best)
        for number, scores in sorted(cases.items())
        if scores
    ]
    if frames:
        with replacing(directory / CASES_FILE) as partial:
            pd.concat(frames, ignore_index=True)[list(COLUMNS)].to_parquet(partial, index=False)


def _frame(task: Task, scores: Sequence[CaseScores], anonymous: bool) -> pd.DataFrame:
    sizes = [each.values.size for each in scores]
    names = [case_names(task, each.site, each.split, each.cases.tolist(), anonymous=anonymous) for each in scores]
    roles = [role_of(each.site, task.inside) for each in scores]
    return pd.DataFrame(
        {
            "site": np.repeat([each.site for each in scores], sizes),
            "role": np.repeat(roles, sizes),
            "split": np.repeat([each.split for each in scores], sizes),
            "case": np.concatenate([np.tile(each.cases, len(each.metrics)) for each in scores]),
            "image": [name.image for each, of in zip(scores, names, strict=True) for name in of * len(each.metrics)],
            "patient": [
                name.patient for each, of in zip(scores, names, strict=True) for name in of * len(each.metrics)
            ],
            "predictor": np.repeat([each.predictor for each in scores], sizes),
            "metric": np.concatenate([np.repeat(each.metrics, len(each.cases)) for each in scores]),
            "value": np.concatenate([each.values.ravel() for each in scores]),
        }
    ).astype({"image": "string", "patient": "string"})


def case_names(task: Task, site: str, split: str, cases: Collection[int], *, anonymous: bool) -> list[CaseName]:
    """The names of the cases with these numbers; with `anonymous` as in `write_cases`."""
    if task.case_names is None:
        return [CaseName()] * len(cases)
    names = task.case_names(site, split)
    found = [names[case] for case in cases]
    return [CaseName(hash_name(name.image), hash_name(name.patient)) for name in found] if anonymous else found
