"""What ends trials early, or changes them on their way: Ray Tune's schedulers, over rounds."""

from __future__ import annotations

from typing import Any

from ray.tune.schedulers import (
    ASHAScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from raysim.search import distributions
from raysim.search.spec import SearchSpec


class HyperBand(HyperBandScheduler):
    """Ray's, which after its first halving passes over a trial that fails, and so waits for it for ever."""

    def _process_bracket(self, tune_controller: Any, bracket: Any) -> str:
        action: str = super()._process_bracket(tune_controller, bracket)
        bracket.is_being_processed = False
        return action


class Median(MedianStoppingRule):
    """Ray's, which takes the last word of a trial that has failed for a result, and misses the metric in it."""

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """It has ended."""
        if self._metric in result:
            super().on_trial_complete(tune_controller, trial, result)


def build_scheduler(search: SearchSpec) -> TrialScheduler | None:
    """Tune's scheduler of this name, over rounds."""
    rounds = search.rounds
    if search.scheduler == "asha":
        grace = max(1, rounds // 9)
        return ASHAScheduler(time_attr="round", max_t=rounds, grace_period=grace, reduction_factor=3)
    if search.scheduler == "hyperband":
        return HyperBand(time_attr="round", max_t=rounds, reduction_factor=3, stop_last_trials=False)
    if search.scheduler == "median":
        return Median(time_attr="round", grace_period=max(1, rounds // 4), min_samples_required=3)
    if search.scheduler == "pbt":
        return PopulationBasedTraining(
            time_attr="round",
            perturbation_interval=max(1, rounds // 5),
            hyperparam_mutations={key: _mutated(domain) for key, domain in search.space.domains.items()},
            custom_explore_fn=lambda config: _within(search, config),
            require_attrs=False,
            log_config=False,
        )
    return None


def _mutated(domain: Any) -> Any:
    return list(domain.categories) if hasattr(domain, "categories") else domain


def _within(search: SearchSpec, config: dict[str, Any]) -> dict[str, Any]:
    """PBT multiplies values by 0.8 or 1.2, past the ends too."""
    known = search.space.domains
    return {key: distributions.clip(known[key], value) if key in known else value for key, value in config.items()}
