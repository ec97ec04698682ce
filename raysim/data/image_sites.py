"""The data of image sites: cases prepared in parallel, once per node, kept in the cache and memory-mapped."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from raysim.core.contracts import SPLITS, CaseName, Data, ProgressCallback
from raysim.core.errors import ConfigError
from raysim.core.formatting import pluralize
from raysim.data.cache import cache_key, fingerprint, load_or_create
from raysim.data.case_preparation import Case, CasePreparation
from raysim.data.data_errors import InvalidDataError, describe_shape_mismatch, raise_problems, summarize_notes
from raysim.data.file_paths import parent_folder
from raysim.data.image_reader import read_image
from raysim.data.mask_colours import palette_conflicts
from raysim.data.mask_values import UnknownMaskValues
from raysim.data.scanner_shift import ScannerShift, make_scanner
from raysim.data.site_arrays import data_from_arrays

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class CaseRow:
    """One case of the table: `label` is a mask's file or a class index.

    `key` identifies the case and is the same on every node.
    """

    split: str
    image: str
    label: str | int | None
    key: str
    level: int | None = None  # number of the body region, if the table has one
    patient: str | None = None


@dataclass(frozen=True)
class ImageSites:
    """Opens the data of a site: from the cache, or from the image files if this node has not prepared them yet."""

    rows: Mapping[str, Sequence[CaseRow]]
    preparation: CasePreparation
    shift: ScannerShift
    seed: int
    cache_folder: Path
    cache_keys: Mapping[str, str]  # by site

    def __call__(self, site: str) -> Data:
        """The data of the site. Raises ConfigError if its files must be read and cannot be used."""
        return data_from_arrays(self.arrays(site))

    def case_names(self, site: str, split: str) -> Sequence[CaseName]:
        """The cases of a site in a split: the `key` of the table as the image, and the patient."""
        return [CaseName(row.key, row.patient) for row in self.rows[site] if row.split == split]

    def paths(self) -> tuple[list[str], list[str]]:
        """The folders that are read from, and the folders that are written to."""
        rows = [row for site_rows in self.rows.values() for row in site_rows]
        files = [path for row in rows for path in (row.image, row.label) if isinstance(path, str)]
        return list(dict.fromkeys(map(parent_folder, files))), [str(self.cache_folder)]

    def arrays(self, site: str, on_case_done: Callable[[], None] = lambda: None) -> dict[str, Array]:
        """`<split>.<field>` of each split, and of each row `lost`, `erased`, `foreground`, `notes`, `mask_notes`
        and `voxels`.

        `voxels`, with masks, is (rows, 256), the number of voxels with each class index. `palettes`, of all rows, is
        (n, 6): the number of the row, and an entry of `palette_entries`.

        `on_case_done` is called after each case that is prepared, not for those in the cache.
        """
        return load_or_create(self.cache_folder, self.cache_keys[site], lambda: self._prepare_site(site, on_case_done))

    def _prepare_site(self, site: str, on_case_done: Callable[[], None]) -> dict[str, Array]:
        rows, cases, problems = self.rows[site], list[Case](), list[ConfigError | str]()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for case in pool.map(lambda row: self._prepare_case(site, row), rows):
                on_case_done()
                if isinstance(case, Case):
                    cases.append(case)
                else:
                    problems.append(case)
        raise_problems(problems or list(_shape_problems(rows, cases)))
        each = ("lost", "erased", "foreground", "notes", "mask_notes")
        arrays = {name: np.array([getattr(case, name) for case in cases]) for name in each}
        arrays["palettes"] = np.concatenate(
            [np.insert(case.palette, 0, number, axis=1) for number, case in enumerate(cases)]
        )
        has_masks = self.preparation.classes is not None
        if has_masks:
            arrays["voxels"] = np.stack([_count_voxels(case.labels) for case in cases])
        for split in SPLITS:
            split_cases = [case for row, case in zip(rows, cases, strict=True) if row.split == split]
            fields = _concatenate_cases(split_cases, cases[0], has_masks)
            arrays |= {f"{split}.{name}": array for name, array in fields}
            levels = [row.level for row in rows if row.split == split]
            if levels and None not in levels:
                arrays[f"{split}.levels"] = np.array(levels, np.int32)
        return arrays

    def _prepare_case(self, site: str, row: CaseRow) -> Case | ConfigError:
        try:
            case = self.preparation(row.image, row.label)
        except ConfigError as error:  # returned, so that one attempt finds every invalid file
            return error
        scanner = make_scanner(site, self.shift, self.seed, case.inputs.shape[1])
        return replace(case, inputs=scanner(case.inputs, [f"{row.key}:{n}" for n in range(len(case.inputs))]))


def make_image_sites(
    rows: Mapping[str, Sequence[CaseRow]],
    preparation: CasePreparation,
    shift: ScannerShift,
    seed: int,
    cache_folder: Path,
) -> ImageSites:
    """The opener of these sites. A cache key depends on files, preparation and scanner, so no stale entry is used."""
    # The names of the classes do not change the arrays.
    values = None if preparation.classes is None else list(preparation.classes.values())
    preparation_key = [version("monai"), {**asdict(preparation), "classes": values}]

    def site_key(site: str) -> str:
        files = [
            (row.split, fingerprint(row.image), _label_fingerprint(row.label), row.key, *_optional_level(row))
            for row in rows[site]
        ]
        scanner_key = [site, seed, asdict(shift)] if shift.severity else None
        return cache_key([preparation_key, scanner_key, files])

    with ThreadPoolExecutor(16) as pool:  # these threads mostly wait for remote stores
        keys = dict(zip(rows, pool.map(site_key, rows), strict=True))
    return ImageSites(rows, preparation, shift, seed, cache_folder, keys)


def _optional_level(row: CaseRow) -> tuple[int, ...]:
    return () if row.level is None else (row.level,)


def _label_fingerprint(label: str | int | None) -> object:
    return fingerprint(label) if isinstance(label, str) else label


def prepare_images(sites: ImageSites, progress: ProgressCallback | None = None) -> dict[str, dict[str, Array]]:
    """The arrays of every site, as from `ImageSites.arrays`. Raises ConfigError with the problems of all sites."""
    total, done = sum(map(len, sites.rows.values())), 0
    arrays: dict[str, dict[str, Array]] = {}
    problems: list[ConfigError | str] = []

    def count_case() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    for site, rows in sites.rows.items():
        before = done
        try:
            arrays[site] = sites.arrays(site, count_case)
        except InvalidDataError as error:
            problems += error.problems
        for _ in rows[done - before :]:  # cases from the cache
            count_case()
    problems = problems or list(_palette_problems(sites, arrays))
    unknown_values = any(isinstance(problem, UnknownMaskValues) for problem in problems)
    raise_problems(problems, read_mask_values(sites) if unknown_values else ())
    _check_foreground(sites, arrays)
    _warn_about_notes(sites, arrays)
    _warn_about_erased_labels(sites, arrays)
    return arrays


def read_mask_values(sites: ImageSites) -> list[float]:
    """All values in the masks that can be read, sorted."""
    masks = [row.label for rows in sites.rows.values() for row in rows if isinstance(row.label, str)]

    def values(mask: str) -> list[float]:
        try:
            found: list[float] = np.unique(read_image(mask, mask=True).array).tolist()
        except ConfigError:
            return []
        return found

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return sorted({value for found in pool.map(values, masks) for value in found})


def _check_foreground(sites: ImageSites, arrays: Mapping[str, Mapping[str, Array]]) -> None:
    """Raises ConfigError if the class without a value has another value in some masks than in others."""
    files: dict[int, ConfigError | str] = {}
    classes = sites.preparation.classes or {}
    for site, fields in arrays.items():
        for row, value in zip(sites.rows[site], fields["foreground"].tolist(), strict=True):
            if value:
                files.setdefault(value, UnknownMaskValues(str(row.label), [value], classes))
    if len(files) > 1:
        raise_problems([files[value] for value in sorted(files)], read_mask_values(sites))


def _count_voxels(labels: Array | None) -> Array:
    return np.bincount(labels.ravel() if labels is not None else [], minlength=256).astype(np.int64)


def _palette_problems(sites: ImageSites, arrays: Mapping[str, Mapping[str, Array]]) -> Iterator[str]:
    """A line for the first mask of any site whose palette contradicts that of another mask."""
    entries = {
        str(row.label): palettes[palettes[:, 0] == number, 1:]
        for site in arrays
        for palettes in [np.asarray(arrays[site]["palettes"])]
        for number, row in enumerate(sites.rows[site])
    }
    return palette_conflicts(entries)


def _warn_about_notes(sites: ImageSites, arrays: Mapping[str, Mapping[str, Array]]) -> None:
    notes = [
        (str(file), note)
        for site in arrays
        for row, *both in zip(sites.rows[site], arrays[site]["notes"], arrays[site]["mask_notes"], strict=True)
        for file, notes in zip((row.image, row.label), both, strict=True)
        for note in str(notes).splitlines()
    ]
    for line in summarize_notes(notes):
        warnings.warn(line, stacklevel=3)


def _warn_about_erased_labels(sites: ImageSites, arrays: Mapping[str, Mapping[str, Array]]) -> None:
    preparation = sites.preparation
    images = [
        row.image
        for site in arrays
        for row, erased in zip(sites.rows[site], arrays[site]["erased"], strict=True)
        if erased
    ]
    if images:
        causes = {
            "task.data.spacing": preparation.spacing,
            "task.data.size": preparation.size if preparation.fit == "resize" else None,
        }
        warnings.warn(
            f"{' with '.join(key for key, value in causes.items() if value)} removes all labelled voxels of "
            f"{pluralize(len(images), 'image')}, such as {images[0]}; use a finer grid to keep them",
            stacklevel=3,
        )


def _shape_problems(rows: Sequence[CaseRow], cases: Sequence[Case]) -> Iterator[str]:
    """A line for each case whose shape differs from that of the first case."""
    expected = cases[0].inputs.shape[1:]
    for row, case in zip(rows, cases, strict=True):
        if case.inputs.shape[1:] != expected:
            yield describe_shape_mismatch(row.image, case.inputs.shape[1:], rows[0].image, expected)


def common_shape(arrays: Mapping[str, Mapping[str, Array]]) -> tuple[int, ...]:
    """The shape (C, *space) of the examples of all sites. Raises ConfigError if it differs between sites."""
    shapes = {site: tuple(fields["train.inputs"].shape[1:]) for site, fields in arrays.items()}
    first, expected = next(iter(shapes.items()))
    raise_problems(
        [
            describe_shape_mismatch(f"site '{site}'", shape, f"site '{first}'", expected)
            for site, shape in shapes.items()
            if shape != expected
        ]
    )
    return expected


def split_sizes(arrays: Mapping[str, Mapping[str, Array]]) -> dict[str, dict[str, int]]:
    """The number of examples of each site in each split."""
    return {site: {split: len(fields[f"{split}.inputs"]) for split in SPLITS} for site, fields in arrays.items()}


def _concatenate_cases(cases: Sequence[Case], example: Case, has_masks: bool) -> Iterator[tuple[str, Array]]:
    """The fields of a split that has these cases; `example` is any case, for the shapes of an empty split."""
    counts = [len(case.inputs) for case in cases]
    yield "inputs", np.concatenate([example.inputs[:0], *(case.inputs for case in cases)])
    yield "cases", np.repeat(np.arange(len(cases)), counts)
    spacing = np.array([case.spacing for case in cases]).reshape(-1, len(example.spacing))
    yield "spacing", np.repeat(spacing, counts, axis=0)
    labels = [case.labels for case in cases if case.labels is not None]
    if len(labels) == len(cases):
        space = example.inputs.shape[2:] if has_masks else ()
        yield "labels", np.concatenate([np.zeros((0, 1, *space), np.uint8), *labels])
