"""The prepared data of every site: made once, in parallel over cases, kept in the cache, opened by mapping."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import monai
import numpy as np

from raysim.core.contracts import SPLITS, Data, ProgressCallback, Split
from raysim.core.errors import ConfigError
from raysim.core.formatting import pluralize
from raysim.data.cache import cached, digest, fingerprint
from raysim.data.case_preparation import Case, Preparation
from raysim.data.data_errors import FaultyData, refuse, unlike
from raysim.data.file_paths import folder_of
from raysim.data.scanner_shift import ScannerShift, scanner

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class CaseRow:
    """One case as the table has it: `label` is a mask's file or the index of a class.

    `key` names the case the same on every machine.
    """

    split: str
    image: str
    label: str | int | None
    key: str
    level: int | None = None  # which part of the body it shows, where the table says so


@dataclass(frozen=True)
class ImageSites:
    """Opens sites: from the cache, or from the files where this machine has not prepared them yet."""

    rows: Mapping[str, Sequence[CaseRow]]
    preparation: Preparation
    shift: ScannerShift
    seed: int
    folder: Path
    entries: Mapping[str, str]  # of the cache, by site

    def __call__(self, site: str) -> Data:
        """All that the site has. Raises ConfigError if its files are needed and wrong."""
        return data_from_arrays(self.arrays(site))

    def paths(self) -> tuple[list[str], list[str]]:
        """The folders that are read from, and those that are written to."""
        rows = [row for of in self.rows.values() for row in of]
        files = [path for row in rows for path in (row.image, row.label) if isinstance(path, str)]
        return list(dict.fromkeys(map(folder_of, files))), [str(self.folder)]

    def arrays(self, site: str, tick: Callable[[], None] = lambda: None) -> dict[str, Array]:
        """`<split>.<field>` of each split, `lost` and `erased` of each row; `tick` for each case that is made."""
        return cached(self.folder, self.entries[site], lambda: self._made(site, tick))

    def _made(self, site: str, tick: Callable[[], None]) -> dict[str, Array]:
        rows, cases, faults = self.rows[site], list[Case](), list[ConfigError | str]()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for case in pool.map(lambda row: self._case(site, row), rows):
                tick()
                if isinstance(case, Case):
                    cases.append(case)
                else:
                    faults.append(case)
        refuse(faults or list(_unlike(rows, cases)))
        arrays = {name: np.array([getattr(case, name) for case in cases]) for name in ("lost", "erased")}
        masks = self.preparation.classes is not None
        for split in SPLITS:
            chosen = [case for row, case in zip(rows, cases, strict=True) if row.split == split]
            arrays |= {f"{split}.{name}": array for name, array in _joined(chosen, cases[0], masks)}
            levels = [row.level for row in rows if row.split == split]
            if levels and None not in levels:
                arrays[f"{split}.levels"] = np.array(levels, np.int32)
        return arrays

    def _case(self, site: str, row: CaseRow) -> Case | ConfigError:
        try:
            case = self.preparation(row.image, row.label)
        except ConfigError as error:  # kept, so that one attempt finds every faulty file
            return error
        machine = scanner(site, self.shift, self.seed, case.inputs.shape[1])
        return replace(case, inputs=machine(case.inputs, [f"{row.key}:{n}" for n in range(len(case.inputs))]))


def image_sites(
    rows: Mapping[str, Sequence[CaseRow]], preparation: Preparation, shift: ScannerShift, seed: int, folder: Path
) -> ImageSites:
    """What opens these sites. An entry's name tells files, preparation and scanner, so no old one is reused."""
    # What classes are called changes no array.
    values = None if preparation.classes is None else list(preparation.classes.values())
    how = [monai.__version__, {**asdict(preparation), "classes": values}]

    def entry(site: str) -> str:
        files = [(r.split, fingerprint(r.image), _identity(r.label), r.key, *_level(r)) for r in rows[site]]
        seen_through = [site, seed, asdict(shift)] if shift.severity else None
        return digest([how, seen_through, files])

    with ThreadPoolExecutor(16) as pool:  # waiting for stores, mostly
        entries = dict(zip(rows, pool.map(entry, rows), strict=True))
    return ImageSites(rows, preparation, shift, seed, folder, entries)


def _level(row: CaseRow) -> tuple[int, ...]:
    return () if row.level is None else (row.level,)


def _identity(label: str | int | None) -> object:
    return fingerprint(label) if isinstance(label, str) else label


def prepare_images(sites: ImageSites, progress: ProgressCallback | None = None) -> dict[str, dict[str, Array]]:
    """The arrays of every site, as `Sites.arrays`. Raises ConfigError with what is wrong at all of them."""
    total, done = sum(map(len, sites.rows.values())), 0
    arrays: dict[str, dict[str, Array]] = {}
    faults: list[ConfigError | str] = []

    def tick() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    for site, rows in sites.rows.items():
        before = done
        try:
            arrays[site] = sites.arrays(site, tick)
        except FaultyData as error:
            faults += error.faults
        for _ in rows[done - before :]:  # those that were in the cache
            tick()
    refuse(faults)
    _warn_of_erasing(sites, arrays)
    return arrays


def _warn_of_erasing(sites: ImageSites, arrays: Mapping[str, Mapping[str, Array]]) -> None:
    how = sites.preparation
    erased = [
        row.image for site in arrays for row, gone in zip(sites.rows[site], arrays[site]["erased"], strict=True) if gone
    ]
    if erased:
        causes = {"task.data.spacing": how.spacing, "task.data.size": how.size if how.fit == "resize" else None}
        warnings.warn(
            f"{' with '.join(key for key, given in causes.items() if given)} leaves no labelled voxel of "
            f"{pluralize(len(erased), 'image')}, such as {erased[0]}; a finer grid keeps them",
            stacklevel=3,
        )


def _unlike(rows: Sequence[CaseRow], cases: Sequence[Case]) -> Iterator[str]:
    """A line for each case that is not of the shape of the first."""
    first = cases[0].inputs.shape[1:]
    for row, case in zip(rows, cases, strict=True):
        if case.inputs.shape[1:] != first:
            yield unlike(row.image, case.inputs.shape[1:], rows[0].image, first)


def common_shape(arrays: Mapping[str, Mapping[str, Array]]) -> tuple[int, ...]:
    """(C, *space) of the examples of all sites. Raises ConfigError where they differ."""
    shapes = {site: tuple(of["train.inputs"].shape[1:]) for site, of in arrays.items()}
    first, shape = next(iter(shapes.items()))
    refuse([unlike(f"site '{site}'", s, f"site '{first}'", shape) for site, s in shapes.items() if s != shape])
    return shape


def split_sizes(arrays: Mapping[str, Mapping[str, Array]]) -> dict[str, dict[str, int]]:
    """How many examples each site has in each split."""
    return {site: {split: len(of[f"{split}.inputs"]) for split in SPLITS} for site, of in arrays.items()}


def _joined(cases: Sequence[Case], like: Case, masks: bool) -> Iterator[tuple[str, Array]]:
    """The fields of a split of these cases; `like` any case, for the shapes where there are none."""
    numbers = [len(case.inputs) for case in cases]
    yield "inputs", np.concatenate([like.inputs[:0], *(case.inputs for case in cases)])
    yield "cases", np.repeat(np.arange(len(cases)), numbers)
    spacing = np.array([case.spacing for case in cases]).reshape(-1, len(like.spacing))
    yield "spacing", np.repeat(spacing, numbers, axis=0)
    labels = [case.labels for case in cases if case.labels is not None]
    if len(labels) == len(cases):
        space = like.inputs.shape[2:] if masks else ()
        yield "labels", np.concatenate([np.zeros((0, 1, *space), np.uint8), *labels])


def data_from_arrays(arrays: Mapping[str, Array]) -> Data:
    """The splits of a site whose arrays are called `<split>.<field>`; labels may be left out."""
    return Data(**{split: _split(arrays, split) for split in SPLITS})


def _split(arrays: Mapping[str, Array], split: str) -> Split:
    return Split(
        inputs=arrays[f"{split}.inputs"],
        labels=arrays.get(f"{split}.labels"),
        cases=arrays[f"{split}.cases"],
        spacing=arrays[f"{split}.spacing"],
        levels=arrays.get(f"{split}.levels"),
    )
