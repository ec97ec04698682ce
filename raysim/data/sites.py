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

from raysim.data.cache import cached, digest, fingerprint
from raysim.data.cases import Case, Preparation, StrayValues
from raysim.data.facts import FEW
from raysim.data.shift import Shift, scanner
from raysim.data.wording import counted
from raysim.errors import ConfigError
from raysim.types import SPLITS, Data, Progress, Split

Array = np.ndarray[Any, np.dtype[Any]]
LISTED = 5  # faults named in one error


@dataclass(frozen=True)
class Row:
    """One case as the table has it; `key` names it the same on every machine."""

    split: str
    image: str
    label: str | None
    key: str


@dataclass(frozen=True)
class Sites:
    """Opens sites: from the cache, or from the files where this machine has not prepared them yet."""

    rows: Mapping[str, Sequence[Row]]
    preparation: Preparation
    shift: Shift
    seed: int
    folder: Path
    entries: Mapping[str, str]  # of the cache, by site

    def __call__(self, site: str) -> Data:
        """All that the site has. Raises ConfigError if its files are needed and wrong."""
        arrays = self.arrays(site)
        return Data(**{split: _split(arrays, split) for split in SPLITS})

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
        for split in SPLITS:
            chosen = [case for row, case in zip(rows, cases, strict=True) if row.split == split]
            arrays |= {f"{split}.{name}": array for name, array in _joined(chosen, cases[0])}
        return arrays

    def _case(self, site: str, row: Row) -> Case | ConfigError:
        try:
            case = self.preparation(row.image, row.label)
        except ConfigError as error:  # kept, so that one attempt finds every faulty file
            return error
        machine = scanner(site, self.shift, self.seed, case.inputs.shape[1])
        return replace(case, inputs=machine(case.inputs, [f"{row.key}:{n}" for n in range(len(case.inputs))]))


class FaultyData(ConfigError):
    """Files that cannot be used; `faults` has a line for each."""

    def __init__(self, faults: Sequence[ConfigError | str]) -> None:
        more = [f"and {len(faults) - LISTED} more"] if len(faults) > LISTED else []
        lines = [*map(str, faults[:LISTED]), *more, *_stray_cure(faults)]
        super().__init__("the data cannot be used:\n  " + "\n  ".join(lines))
        self.faults = faults


def _stray_cure(faults: Sequence[ConfigError | str]) -> Iterator[str]:
    """Classes that would hold every value in the label files that were read."""
    strays = [fault for fault in faults if isinstance(fault, StrayValues)]
    values = sorted({value for fault in strays for value in fault.values})
    if len(values) > FEW or any(value % 1 for value in values):
        yield "a mask has few values, whole numbers; JPEG and interpolation leave others: save masks without them"
    elif strays:
        named = {**strays[0].classes, **{f"NAME{int(value)}": int(value) for value in values}}
        pairs = ", ".join(f"{name}: {value}" for name, value in named.items())
        yield f"name every value, in quotes: 'task.data.classes={{{pairs}}}'"


def refuse(faults: Sequence[ConfigError | str]) -> None:
    """Raises FaultyData if there are any."""
    if faults:
        raise FaultyData(faults)


def sites(rows: Mapping[str, Sequence[Row]], preparation: Preparation, shift: Shift, seed: int, folder: Path) -> Sites:
    """What opens these sites. An entry's name tells files, preparation and scanner, so no old one is reused."""
    # What classes are called changes no array.
    how = [monai.__version__, {**asdict(preparation), "classes": list(preparation.classes.values())}]

    def entry(site: str) -> str:
        files = [(r.split, fingerprint(r.image), r.label and fingerprint(r.label), r.key) for r in rows[site]]
        seen_through = [site, seed, asdict(shift)] if shift.severity else None
        return digest([how, seen_through, files])

    with ThreadPoolExecutor(16) as pool:  # waiting for stores, mostly
        entries = dict(zip(rows, pool.map(entry, rows), strict=True))
    return Sites(rows, preparation, shift, seed, folder, entries)


def prepare(sites: Sites, progress: Progress | None = None) -> dict[str, dict[str, Array]]:
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


def _warn_of_erasing(sites: Sites, arrays: Mapping[str, Mapping[str, Array]]) -> None:
    how = sites.preparation
    erased = [
        row.image for site in arrays for row, gone in zip(sites.rows[site], arrays[site]["erased"], strict=True) if gone
    ]
    if erased:
        causes = {"task.data.spacing": how.spacing, "task.data.size": how.size if how.fit == "resize" else None}
        warnings.warn(
            f"{' with '.join(key for key, given in causes.items() if given)} leaves no labelled voxel of "
            f"{counted(len(erased), 'image')}, such as {erased[0]}; a finer grid keeps them",
            stacklevel=3,
        )


def _unlike(rows: Sequence[Row], cases: Sequence[Case]) -> Iterator[str]:
    """A line for each case that is not of the shape of the first."""
    first = cases[0].inputs.shape[1:]
    for row, case in zip(rows, cases, strict=True):
        if case.inputs.shape[1:] != first:
            yield unlike(row.image, case.inputs.shape[1:], rows[0].image, first)


def unlike(this: str, shape: tuple[int, ...], other: str, expected: tuple[int, ...]) -> str:
    """What to say of two images, or sites, whose examples (C, *space) cannot be in one batch."""
    cure = "give all one size with task.data.size" if shape[0] == expected[0] else "all need the same channels"
    return f"{this}: prepared it is {shape} (channels, then space), but {other} is {expected}; {cure}"


def _joined(cases: Sequence[Case], like: Case) -> Iterator[tuple[str, Array]]:
    """The fields of a split of these cases; `like` any case, for the shapes where there are none."""
    counts = [len(case.inputs) for case in cases]
    yield "inputs", np.concatenate([like.inputs[:0], *(case.inputs for case in cases)])
    yield "cases", np.repeat(np.arange(len(cases)), counts)
    spacing = np.array([case.spacing for case in cases]).reshape(-1, len(like.spacing))
    yield "spacing", np.repeat(spacing, counts, axis=0)
    labels = [case.labels for case in cases if case.labels is not None]
    if len(labels) == len(cases):
        yield "labels", np.concatenate([np.zeros((0, 1, *like.inputs.shape[2:]), np.uint8), *labels])


def _split(arrays: Mapping[str, Array], split: str) -> Split:
    return Split(
        inputs=arrays[f"{split}.inputs"],
        labels=arrays.get(f"{split}.labels"),
        cases=arrays[f"{split}.cases"],
        spacing=arrays[f"{split}.spacing"],
    )
