"""The schedulers of a search: Ray Tune's, over rounds.

A new one is added to SchedulerName, TRAITS and `build_scheduler`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining, TrialScheduler

from raysim.search import distributions
from raysim.search.options import SchedulerName
from raysim.search.tune_compat import FailureTolerantHyperBand, FailureTolerantMedian

if TYPE_CHECKING:
    from raysim.search.spec import SearchSpec


@dataclass(frozen=True, kw_only=True)
class SchedulerTraits:
    """The properties of a scheduler that other parts of a search depend on."""

    replays_rounds: bool = False  # compares whole histories: after a restart it needs all rounds of all trials again
    resumes_any_round: bool = False  # pauses trials or copies their state in any round, so each needs a checkpoint
    transfers_state: bool = False  # a trial may continue from another's state
    waits_for_all: bool = False  # a trial waits for others, so a limit of concurrent trials could block it forever


TRAITS: Mapping[SchedulerName, SchedulerTraits] = {
    "fifo": SchedulerTraits(),
    "asha": SchedulerTraits(replays_rounds=True),
    "median": SchedulerTraits(replays_rounds=True, resumes_any_round=True),
    "hyperband": SchedulerTraits(replays_rounds=True, resumes_any_round=True, waits_for_all=True),
    "pbt": SchedulerTraits(resumes_any_round=True, transfers_state=True, waits_for_all=True),
}


def build_scheduler(spec: SearchSpec) -> TrialScheduler | None:
    """Ray Tune's scheduler for the search; None for fifo, Tune's default."""
    rounds = spec.rounds
    if spec.scheduler == "asha":
        grace = max(1, rounds // 9)
        return ASHAScheduler(time_attr="round", max_t=rounds, grace_period=grace, reduction_factor=3)
    if spec.scheduler == "hyperband":
        return FailureTolerantHyperBand(time_attr="round", max_t=rounds, reduction_factor=3, stop_last_trials=False)
    if spec.scheduler == "median":
        grace, column = max(1, rounds // 4), spec.objectives[0].column
        return FailureTolerantMedian(column, time_attr="round", grace_period=grace, min_samples_required=3)
    if spec.scheduler == "pbt":
        return PopulationBasedTraining(
            time_attr="round",
            perturbation_interval=max(1, rounds // 5),
            hyperparam_mutations={key: _mutation(domain) for key, domain in spec.space.domains.items()},
            custom_explore_fn=lambda config: _clip(spec, config),
            require_attrs=False,
            log_config=False,
        )
    return None


def _mutation(domain: Any) -> Any:
    return list(domain.categories) if hasattr(domain, "categories") else domain


def _clip(spec: SearchSpec, config: dict[str, Any]) -> dict[str, Any]:
    """`config` within the bounds: PBT multiplies values by 0.8 or 1.2 and may leave them."""
    domains = spec.space.domains
    return {key: distributions.clip(domains[key], value) if key in domains else value for key, value in config.items()}
