"""Groups runs by their configuration, and names each group by the values that differ."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysim.core.errors import ConfigError
from raysim.core.suggestions import did_you_mean
from raysim.reporting.finished_runs import RunRecord

SEED, FOLD, ALGORITHM = "seed", "task.data.fold", "algorithm.name"
# Keys that cannot change a result, and the keys of repetitions.
IGNORED_KEYS = {
    *(SEED, FOLD, "backend", "ray_address", "site_timeout_s", "checkpoint_every", "anonymous_cases", "pictures"),
    *("tracker", "metric", "task.data.cache"),  # `metric` chooses rounds; `compare` notes if it differs
}
IGNORED_PREFIXES = ("resources.",)


@dataclass(frozen=True)
class Repetition:
    """One seed of a group: a run, or a run for each fold."""

    seed: Any
    runs: tuple[RunRecord, ...]


@dataclass(frozen=True)
class RunGroup:
    """Runs with the same configuration, which differ in seed and fold alone (or in keys that `--by` pools)."""

    name: str
    repetitions: tuple[Repetition, ...]

    @property
    def runs(self) -> list[RunRecord]:
        """All runs of the group."""
        return [run for each in self.repetitions for run in each.runs]


def differing_keys(runs: Sequence[RunRecord]) -> list[str]:
    """The keys that differ between the runs and can change a result; the name of the algorithm is first.

    Keys of a part with a name, such as the algorithm, are compared between runs in which the part has the same name:
    `algorithm.mu`, which FedAvg does not have, is not a further difference. An absent key has the value None.
    """
    known = dict.fromkeys(key for run in runs for key in run.keys)
    candidates = [key for key in known if key not in IGNORED_KEYS and not key.startswith(IGNORED_PREFIXES)]
    found = [key for key in candidates if any(_differs(key, each) for each in _same_parts(key, runs))]
    return sorted(found, key=lambda key: key != ALGORITHM)


def other_differences(runs: Sequence[RunRecord], by: str | None = None) -> list[str]:
    """The keys that all runs have and that differ, but are not in the names of the groups.

    Without `by` they differ only between runs with different algorithms, networks or similar.
    """
    named = differing_keys(runs) if by is None else _known_keys(by, runs)
    common = set.intersection(*(set(run.keys) for run in runs)) - set(named) - IGNORED_KEYS
    return sorted(key for key in common if not key.startswith(IGNORED_PREFIXES) and _differs(key, runs))


def _differs(key: str, runs: Sequence[RunRecord]) -> bool:
    return len({_text(run.keys.get(key)) for run in runs}) > 1


def _same_parts(key: str, runs: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """The runs, grouped by the names of the parts that contain `key`: for `algorithm.lr` by the algorithm."""
    parts = key.split(".")
    names = [".".join([*parts[:depth], "name"]) for depth in range(1, len(parts))]
    classes: dict[tuple[str, ...], list[RunRecord]] = {}
    for run in runs:
        classes.setdefault(tuple(_text(run.keys.get(name)) for name in names if name != key), []).append(run)
    return [*classes.values()]


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def group_runs(runs: Sequence[RunRecord], by: str | None = None) -> list[RunGroup]:
    """The groups, in the order of their first runs. `by` are keys, separated by commas, instead of all that differ.

    A trial of a search that repeats the configuration and the seed of another one is left out, since its results are
    the same. Raises ConfigError for a key that no run has, and for two other runs with the same configuration and seed.
    """
    differing = differing_keys(runs)
    keys = _known_keys(by, runs) if by is not None else differing
    repeated = [key for key in differing if key not in keys]
    groups: dict[tuple[str, ...], dict[tuple[str, ...], dict[str, RunRecord]]] = {}
    for run in runs:
        group = groups.setdefault(_values(run, keys), {})
        folds = group.setdefault((_text(run.keys.get(SEED)), *_values(run, repeated)), {})
        fold = _text(run.keys.get(FOLD))
        if fold in folds and run.is_trial and folds[fold].is_trial:
            continue
        if fold in folds:
            raise ConfigError(
                f"{folds[fold].path} and {run.path} have the same configuration and seed; give only one of them"
            )
        folds[fold] = run
    found = [
        [Repetition(json.loads(key[0]), tuple(folds.values())) for key, folds in group.items()]
        for group in groups.values()
    ]
    return [RunGroup(group_name(each[0].runs[0], keys, runs), tuple(each)) for each in found]


def _values(run: RunRecord, keys: Iterable[str]) -> tuple[str, ...]:
    return tuple(_text(run.keys.get(key)) for key in keys)


def _known_keys(by: str, runs: Sequence[RunRecord]) -> list[str]:
    return [_known_key(key.strip(), runs) for key in by.split(",")]


def _known_key(key: str, runs: Sequence[RunRecord]) -> str:
    known = {name for run in runs for name in run.keys}
    for name in (key, f"{key}.name"):
        if name in known:
            return name
    raise ConfigError(
        f"--by {key}: no run has this key{did_you_mean(key, known)}; expected a key of config.yaml, such as algorithm"
    )


def group_name(run: RunRecord, keys: Sequence[str], runs: Sequence[RunRecord]) -> str:
    """The name of a group, such as `fedprox mu=0.1`: the values of `keys`; without keys, the algorithm."""
    short, had = _short_names(keys), [key for key in keys if key in run.keys]
    shown = [key for key in had if any(run in each and _differs(key, each) for each in _same_parts(key, runs))]
    parts = [
        format_value(run.keys.get(key)) if key == ALGORITHM else f"{short[key]}={format_value(run.keys.get(key))}"
        for key in shown
    ]
    return " ".join(parts) or run.algorithm


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """A short name of each key: its shortest end that no other key has; `network` for `task.network.name`."""
    parts = {key: key.removesuffix(".name").split(".") for key in (*keys, SEED)}
    names = {}
    for key, own in parts.items():
        ends = (".".join(own[-length:]) for length in range(1, len(own) + 1))
        others = [f".{'.'.join(other)}" for name, other in parts.items() if name != key]
        names[key] = next((end for end in ends if not any(o.endswith(f".{end}") for o in others)), key)
    return names


def format_value(value: Any) -> str:
    """A value of config.yaml as short text without spaces; for an absolute path its last two parts."""
    if isinstance(value, str):
        return "/".join(Path(value).parts[-2:]) if value.startswith("/") else value
    if isinstance(value, Mapping) or value is None or isinstance(value, bool):
        return json.dumps(value).replace("null", "none").replace(" ", "")
    if isinstance(value, float):  # cohort=1 is one site, and cohort=1.0 is all sites
        return f"{value:.1f}" if value.is_integer() and abs(value) < 1e6 else f"{value:.6g}"
    if isinstance(value, list):
        return f"[{','.join(map(format_value, value))}]"
    return str(value)
