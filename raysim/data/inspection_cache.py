"""Inspects many cases in several processes and stores each result, so that an interrupted description continues."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raysim.core.atomic_io import replacing
from raysim.core.errors import ConfigError
from raysim.data.cache import cache_folder, cache_key, fingerprint
from raysim.data.file_inspection import CaseInspection, ImageStatistics, inspect_case

if TYPE_CHECKING:  # it imports torch, which a description without keys does not need
    from raysim.data.case_preparation import CasePreparation

MANY_CASES = 200  # from which processes, which take seconds to start, are faster than threads
READER_THREADS = 8
CHUNK = 8  # cases that are sent to a process together
FOLDER = "inspections"  # in the cache
Case = tuple[str | None, str | None]  # image and mask


def inspect_cases(
    cases: Sequence[Case],
    preparation: CasePreparation | None,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> list[CaseInspection]:
    """The inspection of each case. `on_done(done, total)` is called after each, in their order."""
    found = []
    with _executor(len(cases)) as pool:
        inspections = pool.map(partial(_inspect, preparation=preparation), cases, chunksize=CHUNK)
        for done, inspection in enumerate(inspections, 1):
            found.append(inspection)
            on_done(done, len(cases))
    return found


def _executor(count: int) -> Executor:
    if count < MANY_CASES:
        return ThreadPoolExecutor(READER_THREADS)
    return ProcessPoolExecutor(os.cpu_count(), get_context("spawn"))  # a fork of a process with threads may hang


def _inspect(case: Case, preparation: CasePreparation | None) -> CaseInspection:
    """The inspection of a case: from the cache, if its files and the preparation are the same; else computed."""
    try:
        key = cache_key([_preparation_key(preparation), *map(fingerprint, filter(None, case))])
    except ConfigError:  # an absent file
        return inspect_case(*case, preparation)
    path = cache_folder() / FOLDER / key[:2] / f"{key}.json"
    if path.is_file() and (cached := _load(path)) is not None:
        return cached
    inspection = inspect_case(*case, preparation)
    if not inspection.problems:  # a problem may be solved by an environment variable
        _save(path, inspection)
    return inspection


def _preparation_key(preparation: CasePreparation | None) -> object:
    if preparation is None:
        return None
    return {key: value for key, value in asdict(preparation).items() if key != "further"}


def _save(path: Path, inspection: CaseInspection) -> None:
    """Store an inspection. If the cache cannot be written, the inspection is computed again the next time."""
    entries = None if inspection.entries is None else inspection.entries.tolist()
    content = {**asdict(inspection), "counts": [*inspection.counts.items()], "entries": entries}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial_file:
            partial_file.write_text(json.dumps(content))
    except OSError:
        return


def _load(path: Path) -> CaseInspection | None:
    """The stored inspection; None for a damaged file."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        statistics, entries = content["statistics"], content["entries"]
        return CaseInspection(
            None if statistics is None else _statistics(statistics),
            dict(content["counts"]),
            (),
            None if entries is None else np.array(entries, np.int64).reshape(-1, 5),
            tuple((file, note) for file, note in content["notes"]),
            content["foreground"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _statistics(values: dict[str, Any]) -> ImageStatistics:
    spacing = values["spacing"]
    fixed = {"shape": tuple(values["shape"]), "spacing": None if spacing is None else tuple(spacing)}
    return ImageStatistics(**{**values, **fixed})
