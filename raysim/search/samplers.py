"""The samplers of a search: a sampler maps the number of a trial to its values.

A resumed search samples the same trials. To add a sampler, add its name to SamplerName and a case to `build_sampler`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysim.search.options import OPTUNA_SAMPLERS
from raysim.search.trial_store import TrialRecord, TrialStatus, load_records

if TYPE_CHECKING:
    from raysim.search.request import SearchRequest
    from raysim.search.spec import SearchSpec

TrialValues = dict[str, Any]
OPTUNA_FILE = "optuna.log"  # the journal of Optuna, in the directory of the search


class Sampler(ABC):
    """Samples the values of new trials by their numbers. May learn from results."""

    @abstractmethod
    def sample(self, number: int) -> TrialValues | None:
        """The values of a new trial; None after the last one."""

    @abstractmethod
    def resume_trial(self, number: int, values: TrialValues) -> None:
        """A trial of an earlier session continues."""

    @abstractmethod
    def on_trial_result(self, number: int, result: Mapping[str, Any]) -> None:
        """A round of the trial has ended."""

    @abstractmethod
    def on_trial_end(self, number: int, result: Mapping[str, Any], status: TrialStatus) -> None:
        """The trial has ended."""


class ListedSampler(Sampler):
    """The values of trials that are known before the search: those of random search, or all combinations."""

    def __init__(self, trials: Sequence[TrialValues]) -> None:
        self.trials = trials

    def sample(self, number: int) -> TrialValues | None:
        return self.trials[number - 1] if number <= len(self.trials) else None

    def resume_trial(self, number: int, values: TrialValues) -> None:
        """Does nothing: the values do not depend on other trials."""

    def on_trial_result(self, number: int, result: Mapping[str, Any]) -> None:
        """Does nothing."""

    def on_trial_end(self, number: int, result: Mapping[str, Any], status: TrialStatus) -> None:
        """Does nothing."""


def build_sampler(
    request: SearchRequest, spec: SearchSpec, records: Sequence[TrialRecord], journal: Path | None = None
) -> Sampler:
    """The sampler of a search; `records` are the trials of earlier sessions, which Optuna learns from.

    `journal`: the file in which Optuna stores its trials; None keeps them in memory.
    """
    seed = spec.variants[0].seed
    if request.options.searcher in OPTUNA_SAMPLERS and not request.samples_whole_grid:
        from raysim.search.optuna_sampler import OptunaSampler  # it imports this module

        earlier = load_records(Path(request.options.warm_start)) if request.options.warm_start else []
        return OptunaSampler(request.options, spec.space, seed, spec.objectives, [*earlier, *records], journal)
    return ListedSampler(request.listed_trials(spec.space, seed))
