"""The data of image sites: cases prepared in parallel, once per node, kept in the cache and memory-mapped."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from raysim.core.contracts import SPLITS, CaseName, Data, ProgressCallback
from raysim.core.errors import ConfigError
from raysim.core.whole_images import PatchOptions
from raysim.data.cache import cache_key, fingerprint, load_or_create, load_or_write
from raysim.data.cache_limit import limit_cache
from raysim.data.case_arrays import CaseRow, case_facts, concatenate_cases, stack_facts
from raysim.data.case_preparation import Case, CasePreparation
from raysim.data.data_errors import InvalidDataError, describe_shape_mismatch, raise_problems
from raysim.data.file_paths import parent_folder
from raysim.data.image_formats import DamagedImageError
from raysim.data.image_reader import read_image
from raysim.data.image_warnings import warn_about_erased_labels, warn_about_notes
from raysim.data.label_columns import Label
from raysim.data.mask_colours import palette_conflicts
from raysim.data.mask_values import UnknownMaskValues
from raysim.data.scanner_shift import ScannerShift, make_scanner
from raysim.data.site_arrays import data_from_arrays
from raysim.data.whole_image_cache import write_images, write_patches

Array = np.ndarray[Any, np.dtype[Any]]
LARGE_CASES = 2  # whole images that are prepared at a time, because each takes several times its size in memory


@dataclass(frozen=True)
class ImageSites:
    """Opens the data of a site: from the cache, or from the image files if this node has not prepared them yet."""

    rows: Mapping[str, Sequence[CaseRow]]
    preparation: CasePreparation
    shift: ScannerShift
    seed: int
    cache_folder: Path
    cache_keys: Mapping[str, str]  # by site
    patches: PatchOptions | None = None  # examples are patches of whole images
    cache_limit: float | None = None  # GB of the cache

    def __call__(self, site: str) -> Data:
        """The data of the site. Raises ConfigError if its files must be read and cannot be used."""
        return data_from_arrays(self.arrays(site), self.patches)

    def case_names(self, site: str, split: str) -> Sequence[CaseName]:
        """The cases of a site in a split: the `key` of the table as the image, and the patient."""
        return [CaseName(row.key, row.patient) for row in self.rows[site] if row.split == split]

    def paths(self) -> tuple[list[str], list[str]]:
        """The folders that are read from, and the folders that are written to."""
        rows = [row for site_rows in self.rows.values() for row in site_rows]
        further = self.preparation.further
        files = [path for row in rows for path in (row.image, *further.get(row.image, ()), row.label)]
        return list(dict.fromkeys(parent_folder(path) for path in files if isinstance(path, str))), [
            str(self.cache_folder)
        ]

    def arrays(self, site: str, on_case_done: Callable[[], None] = lambda: None) -> dict[str, Array]:
        """`<split>.<field>` of each split, and the arrays of `stack_facts` with an entry for each row.

        `on_case_done` is called after each case that is prepared, not for those in the cache.
        """
        made = [path for key in self._entries(site) if not (path := self.cache_folder / key).is_dir()]
        arrays = self._arrays(site, on_case_done)
        try:
            if made:
                self.limit_cache()
        except ConfigError:
            for path in made:
                shutil.rmtree(path, ignore_errors=True)
            raise
        return arrays

    def limit_cache(self) -> None:
        """Remove entries of other runs from the cache if `cache_limit` is exceeded. Raises as `limit_cache`."""
        if self.cache_limit is not None:
            used = {key for site in self.rows for key in self._entries(site)}
            limit_cache(self.cache_folder, used, self.cache_limit)

    def _entries(self, site: str) -> list[str]:
        """The keys of the site's cache entries."""
        key, patches = self.cache_keys[site], self.patches
        if patches is None:
            return [key]
        return [key, cache_key([key, patches.size, patches.per_image, patches.positive, self.seed])]

    def _arrays(self, site: str, on_case_done: Callable[[], None]) -> dict[str, Array]:
        folder, patches, (key, *patch_keys) = self.cache_folder, self.patches, self._entries(site)
        if patches is None:
            return load_or_create(folder, key, lambda: self._prepare_site(site, on_case_done))
        images = load_or_write(folder, key, lambda path: self._write_images(path, site, on_case_done))
        levels = {split: [row.level for row in self.rows[site] if row.split == split] for split in SPLITS}
        drawn = load_or_write(
            folder, patch_keys[0], lambda path: write_patches(path, images, patches, levels, self.seed)
        )
        return images | drawn

    def _prepare_site(self, site: str, on_case_done: Callable[[], None]) -> dict[str, Array]:
        rows, cases = self.rows[site], [case for _, case in self._prepared(site, on_case_done)]
        has_masks = self.preparation.classes is not None
        arrays = stack_facts([case_facts(case, has_masks) for case in cases])
        example = next((case for case in cases if case.labels is not None), cases[0])
        for split in SPLITS:
            split_cases = [case for row, case in zip(rows, cases, strict=True) if row.split == split]
            fields = concatenate_cases(split_cases, example, has_masks)
            arrays |= {f"{split}.{name}": array for name, array in fields}
            levels = [row.level for row in rows if row.split == split]
            if levels and None not in levels:
                arrays[f"{split}.levels"] = np.array(levels, np.int32)
        return arrays

    def _write_images(self, folder: Path, site: str, on_case_done: Callable[[], None]) -> None:
        """Write the whole images of a site, and the facts of its cases. Few cases are in memory."""
        rows, facts = self.rows[site], list[dict[str, Any]]()

        def prepared() -> Iterator[tuple[str, str, Case]]:
            for row, case in self._prepared(site, on_case_done):
                facts.append(case_facts(case, has_masks=True))
                yield row.split, row.key, case

        labelled = {split: all(row.label is not None for row in rows if row.split == split) for split in SPLITS}
        write_images(folder, prepared(), labelled, len(self.preparation.classes or ()))
        for name, array in stack_facts(facts).items():
            np.save(folder / f"{name}.npy", array, allow_pickle=False)

    def _prepared(self, site: str, on_case_done: Callable[[], None]) -> Iterator[tuple[CaseRow, Case]]:
        """Each row with its case. Raises InvalidDataError after the last row if there are problems.

        Cases whose shape differs are a problem; whole images need only the same number of channels.
        """
        rows, problems, differing = self.rows[site], list[ConfigError | str](), list[ConfigError | str]()
        threads = os.cpu_count() if self.patches is None else LARGE_CASES
        at_once, compared = (len(rows), slice(None)) if self.patches is None else (LARGE_CASES, slice(1))
        expected: tuple[str, tuple[int, ...]] | None = None
        with ThreadPoolExecutor(threads) as pool:
            for start in range(0, len(rows), at_once):
                some = rows[start : start + at_once]
                for row, case in zip(some, pool.map(lambda row: self._prepare_case(site, row), some), strict=True):
                    on_case_done()
                    if not isinstance(case, Case):
                        problems.append(case)
                        continue
                    shape = case.inputs.shape[1:]
                    expected = expected or (row.image, shape)
                    if shape[compared] != expected[1][compared]:
                        differing.append(describe_shape_mismatch(row.image, shape, *expected))
                        continue
                    yield row, case
        raise_problems(problems or differing)

    def _prepare_case(self, site: str, row: CaseRow) -> Case | ConfigError:
        try:
            case = self.preparation(row.image, row.label)
        except DamagedImageError as error:
            return DamagedImageError(f"{error} (site {site})")
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
    patches: PatchOptions | None = None,
    cache_limit: float | None = None,
) -> ImageSites:
    """The opener of these sites. A cache key depends on files, preparation and scanner, so no stale entry is used."""
    # The names of the classes do not change the arrays.
    values = None if preparation.classes is None else list(preparation.classes.values())
    keys = {**asdict(replace(preparation, further={})), "classes": values}
    preparation_key = [version("monai"), keys, *(["whole"] if patches else [])]

    def site_key(site: str) -> str:
        files = [
            (
                *(row.split, fingerprint(row.image), _file_fingerprint(row.label), row.key, *_optional_level(row)),
                *map(_file_fingerprint, preparation.further.get(row.image, ())),
            )
            for row in rows[site]
        ]
        scanner_key = [site, seed, asdict(shift)] if shift.severity else None
        return cache_key([preparation_key, scanner_key, files])

    with ThreadPoolExecutor(16) as pool:  # these threads mostly wait for remote stores
        cache_keys = dict(zip(rows, pool.map(site_key, rows), strict=True))
    return ImageSites(rows, preparation, shift, seed, cache_folder, cache_keys, patches, cache_limit)


def _optional_level(row: CaseRow) -> tuple[int, ...]:
    return () if row.level is None else (row.level,)


def _file_fingerprint(file: str | Label | None) -> object:
    """The fingerprint of a file; a label or None is returned unchanged."""
    return fingerprint(file) if isinstance(file, str) else file


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
    sites.limit_cache()
    problems = problems or list(_palette_problems(sites, arrays))
    unknown_values = any(isinstance(problem, UnknownMaskValues) for problem in problems)
    raise_problems(problems, read_mask_values(sites) if unknown_values else ())
    _check_foreground(sites, arrays)
    warn_about_notes(sites, arrays)
    warn_about_erased_labels(sites, arrays)
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


def _palette_problems(sites: ImageSites, arrays: Mapping[str, Mapping[str, Array]]) -> Iterator[str]:
    """A line for the first mask of any site whose palette contradicts that of another mask."""
    entries = {
        str(row.label): palettes[palettes[:, 0] == number, 1:]
        for site in arrays
        for palettes in [np.asarray(arrays[site]["palettes"])]
        for number, row in enumerate(sites.rows[site])
    }
    return palette_conflicts(entries)


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
