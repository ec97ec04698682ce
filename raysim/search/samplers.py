"""The samplers of a search: a sampler maps the number of a trial to its values.

A resumed search samples the same trials. To add a sampler, add its name to SamplerName and a case to `build_sampler`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysim.search.options import OPTUNA_SAMPLERS
from raysim.search.trial_store import TrialRecord, TrialStatus, load_records

if TYPE_CHECKING:
    from raysim.search.request import SearchRequest
    from raysim.search.spec import SearchSpec

TrialValues = dict[str, Any]
OPTUNA_FILE = "optuna.log"  # the journal of Optuna, in the directory of the search


class Sampler:
    """Samples the values of a new trial by its number, None after the last one. May learn from results."""

    def __init__(self, sample: Callable[[int], TrialValues | None]) -> None:
        self.sample = sample

    def resume_trial(self, number: int, values: TrialValues) -> None:
        """A trial of an earlier session continues."""

    def on_trial_result(self, number: int, result: Mapping[str, Any]) -> None:
        """A round of the trial has ended."""

    def on_trial_end(self, number: int, result: Mapping[str, Any] | None, status: TrialStatus) -> None:
        """The trial has ended."""


def build_sampler(
    request: SearchRequest, spec: SearchSpec, records: Sequence[TrialRecord], journal: Path | None = None
) -> Sampler:
    """The sampler of a search; `records` are the trials of earlier sessions, which Optuna learns from.

    `journal`: the file in which Optuna stores its trials; None keeps them in memory.
    """
    seed = spec.variants[0].seed
    if request.options.searcher in OPTUNA_SAMPLERS and not request.samples_whole_grid:
        from raysim.search.optuna_sampler import OptunaSampler  # an optional dependency

        earlier = load_records(Path(request.options.warm_start)) if request.options.warm_start else []
        ended = [record for record in (*earlier, *records) if not record.unfinished]
        return OptunaSampler(request.options, spec.space, seed, spec.objectives, ended, journal)
    return listed_sampler(request.listed_trials(spec.space, seed))


def listed_sampler(trials: Sequence[TrialValues]) -> Sampler:
    """The values of trials that are known before the search: those of random search, or all combinations."""
    return Sampler(lambda number: trials[number - 1] if number <= len(trials) else None)
