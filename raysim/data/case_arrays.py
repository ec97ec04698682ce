"""The arrays of a site from its prepared cases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raysim.data.case_preparation import Case
from raysim.data.label_columns import Label

Array = np.ndarray[Any, np.dtype[Any]]
FACTS = ("lost", "erased", "foreground", "notes", "mask_notes")  # of a case


@dataclass(frozen=True)
class CaseRow:
    """One case of the table: `label` is a mask's file, or the label of the case.

    `key` identifies the case and is the same on every node.
    """

    split: str
    image: str
    label: str | Label | None
    key: str
    level: int | None = None  # number of the body region, if the table has one
    patient: str | None = None


def case_facts(case: Case, has_masks: bool) -> dict[str, Any]:
    """The FACTS of a case, its `palette`, and with masks `voxels`, the number of voxels of each class (256,)."""
    facts = {name: getattr(case, name) for name in (*FACTS, "palette")}
    if has_masks:
        facts["voxels"] = np.bincount(case.labels.ravel() if case.labels is not None else [], minlength=256)
    return facts


def stack_facts(facts: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
    """An array of each fact with an entry per case; `palettes` is (n, 6): the number of the case, and its palette."""
    arrays = {name: np.array([each[name] for each in facts]) for name in FACTS}
    palettes = [np.insert(each["palette"], 0, number, axis=1) for number, each in enumerate(facts)]
    arrays["palettes"] = np.concatenate(palettes)
    if "voxels" in facts[0]:
        arrays["voxels"] = np.stack([each["voxels"] for each in facts]).astype(np.int64)
    return arrays


def concatenate_cases(cases: Sequence[Case], example: Case, has_masks: bool) -> Iterator[tuple[str, Array]]:
    """The fields of a split that has these cases; `example` is any case, if possible with a label, for empty splits."""
    counts = [len(case.inputs) for case in cases]
    yield "inputs", np.concatenate([example.inputs[:0], *(case.inputs for case in cases)])
    yield "cases", np.repeat(np.arange(len(cases)), counts)
    spacing = np.array([case.spacing for case in cases]).reshape(-1, len(example.spacing))
    yield "spacing", np.repeat(spacing, counts, axis=0)
    labels = [case.labels for case in cases if case.labels is not None]
    if len(labels) == len(cases):
        space = example.inputs.shape[2:] if has_masks else ()
        empty = np.zeros((0, 1, *space), np.uint8) if example.labels is None else example.labels[:0]
        yield "labels", np.concatenate([empty, *labels])
