"""Sentences about metrics that have no value, at all sites or at some of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from raysim.core.contracts import EVALUATED_SPLITS, Task
from raysim.core.formatting import MAX_NAMED, join_names

REASONS = (
    "A metric has no value where the cases do not define it (Dice and surface distances need a voxel of the class in "
    "the mask, AUC needs cases of two classes) or where the method has no model for the site"
)
NOTHING_EVALUATED = f"nothing could be evaluated: no metric has a value at any site. {REASONS}"
SiteScores = Mapping[str, Mapping[str, float]]  # scores of each site by split/metric


def score_notes(task: Task, scores: SiteScores, chosen: str, has_chosen: bool) -> list[str]:
    """The sentences about an evaluation with these scores; empty if every site has every metric.

    `chosen` is the main metric, role/split/metric, and `has_chosen` whether it has a value.
    """
    if not any(_names(scores, site) for site in scores):
        return [NOTHING_EVALUATED]
    notes = [] if has_chosen else [f"the main metric {chosen} has no value; choose another one with the key metric"]
    groups = dict[tuple[str, ...], list[str]]()
    sites = [*task.inside, *task.outside]
    for split in EVALUATED_SPLITS:
        with_cases = [site for site in sites if task.sizes[site].get(split, 0)]
        without = [site for site in sites if site not in with_cases]
        if with_cases and without:
            notes.append(f"no {split} cases at {join_names(without)}")
        for name, lacking in _lacking(task, scores, split, with_cases):
            groups.setdefault(lacking, []).append(name)
    missing = [_describe(names, lacking, len(sites)) for lacking, names in groups.items()]
    more = [f"{len(missing) - MAX_NAMED} more such groups of metrics"] if len(missing) > MAX_NAMED else []
    return [*notes, *missing[:MAX_NAMED], *more, *([f"{REASONS}. Means are over the other sites"] if missing else [])]


def _names(scores: SiteScores, site: str) -> list[str]:
    """The names of the site's scores of an evaluated split."""
    return [name for name in scores.get(site, {}) if name.startswith(tuple(f"{split}/" for split in EVALUATED_SPLITS))]


def _lacking(task: Task, scores: SiteScores, split: str, sites: list[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each metric of a split with the `sites` that lack it; not `metric@global` if `metric` is lacking there too."""
    of_task = (f"{split}/{metric}" for metric in task.score.better)
    found = (name for site in sites for name in _names(scores, site) if name.startswith(f"{split}/"))
    lacking = {name: tuple(s for s in sites if name not in scores.get(s, {})) for name in (*of_task, *found)}
    for name, lacking_sites in lacking.items():
        plain = name.partition("@")[0]
        if lacking_sites and (plain == name or lacking.get(plain) != lacking_sites):
            yield name, lacking_sites


def _describe(names: list[str], lacking: tuple[str, ...], sites: int) -> str:
    return f"{join_names(names)}: no value at {'any site' if len(lacking) == sites else join_names(lacking)}"
