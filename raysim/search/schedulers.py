"""The schedulers of a search: those of Ray Tune, with rounds as the unit of time.

To add one, add an entry to SCHEDULERS and its name to SchedulerName.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining, TrialScheduler

from raysim.search import distributions
from raysim.search.options import SchedulerName
from raysim.search.tune_compat import FailureTolerantHyperBand, FailureTolerantMedian

if TYPE_CHECKING:
    from raysim.search.spec import SearchSpec


@dataclass(frozen=True, kw_only=True)
class SchedulerType:
    """How to build a scheduler, and its properties that other parts of a search depend on."""

    build: Callable[[SearchSpec], TrialScheduler | None]  # None: Tune's default, first in, first out
    replays_rounds: bool = False  # compares whole histories: after a restart it needs all rounds of all trials again
    resumes_any_round: bool = False  # pauses trials or copies their state in any round, so each needs a checkpoint
    transfers_state: bool = False  # a trial may continue from another's state
    waits_for_all: bool = False  # a trial waits for others, so a limit of concurrent trials could block it forever
    compares_any_round: bool = False  # chooses the rounds to compare: every round needs an evaluation


def _asha(spec: SearchSpec) -> TrialScheduler:
    grace = max(1, spec.rounds // 9)
    return ASHAScheduler(time_attr="round", max_t=spec.rounds, grace_period=grace, reduction_factor=3)


def _hyperband(spec: SearchSpec) -> TrialScheduler:
    return FailureTolerantHyperBand(time_attr="round", max_t=spec.rounds, reduction_factor=3, stop_last_trials=False)


def _median(spec: SearchSpec) -> TrialScheduler:
    grace, column = max(1, spec.rounds // 4), spec.objectives[0].column
    return FailureTolerantMedian(column, time_attr="round", grace_period=grace, min_samples_required=3)


def _pbt(spec: SearchSpec) -> TrialScheduler:
    return PopulationBasedTraining(
        time_attr="round",
        perturbation_interval=max(1, spec.rounds // 5),
        hyperparam_mutations={key: _mutation(domain) for key, domain in spec.space.domains.items()},
        custom_explore_fn=lambda config: _clip(spec, config),
        require_attrs=False,
        log_config=False,
    )


SCHEDULERS: Mapping[SchedulerName, SchedulerType] = {
    "fifo": SchedulerType(build=lambda spec: None),
    "asha": SchedulerType(build=_asha, replays_rounds=True),
    "median": SchedulerType(build=_median, replays_rounds=True, resumes_any_round=True),
    "hyperband": SchedulerType(
        build=_hyperband, replays_rounds=True, resumes_any_round=True, waits_for_all=True, compares_any_round=True
    ),
    "pbt": SchedulerType(build=_pbt, resumes_any_round=True, transfers_state=True, waits_for_all=True),
}


def _mutation(domain: Any) -> Any:
    return list(domain.categories) if hasattr(domain, "categories") else domain


def _clip(spec: SearchSpec, config: dict[str, Any]) -> dict[str, Any]:
    """`config` clipped to the bounds of the space: PBT multiplies values by 0.8 or 1.2 and may exceed them."""
    domains = spec.space.domains
    return {key: distributions.clip(domains[key], value) if key in domains else value for key, value in config.items()}
