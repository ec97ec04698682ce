"""The samplers of Optuna: TPE, Gaussian processes, CMA-ES and NSGA-II."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ray.tune.search.sample import Categorical, Domain, Integer

from raysim.core.errors import ConfigError
from raysim.core.numeric import is_finite_number
from raysim.core.seeding import stable_seed
from raysim.search import distributions
from raysim.search.objectives import Objective
from raysim.search.options import SearchOptions
from raysim.search.samplers import Sampler, TrialValues
from raysim.search.space import Space
from raysim.search.trial_store import TrialRecord, TrialStatus


class OptunaSampler(Sampler):
    """A sampler of Optuna. Values are requested key by key: a conditional key only in trials of its algorithm.

    `records` are the trials of earlier sessions and of a warm start. With `journal`, the study is stored in this file,
    which `optuna-dashboard` can open. Each session rewrites the file, because the records of the trials are complete
    and a killed session leaves open trials in it.
    """

    def __init__(
        self,
        options: SearchOptions,
        space: Space,
        seed: int,
        objectives: Sequence[Objective],
        records: Sequence[TrialRecord],
        journal: Path | None = None,
    ) -> None:
        self.optuna, self.space, self.objectives = import_optuna(), space, objectives
        # The seed depends on the number of earlier trials: a resumed search must not repeat its first samples.
        sampler = self._optuna_sampler(options, stable_seed(seed, "optuna", len(records)) % 2**31)
        self.study = self.optuna.create_study(
            directions=["maximize" if objective.better == "higher" else "minimize" for objective in objectives],
            sampler=sampler,
            storage=journal and self._storage(journal),
            study_name=journal and journal.parent.name,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self.optuna.exceptions.ExperimentalWarning)
            self.study.set_metric_names([objective.column for objective in objectives])  # of the axes of the dashboard
        self.open_trials: dict[int, Any] = {}
        self.reported_rounds: dict[int, int] = {}  # the last round that Optuna has, by trial
        for record in records:
            if not record.unfinished:
                self.study.add_trial(past_trial(self.optuna, space, objectives, record))

    def _storage(self, journal: Path) -> Any:
        journal.unlink(missing_ok=True)
        journal_module = self.optuna.storages.journal
        return self.optuna.storages.JournalStorage(journal_module.JournalFileBackend(str(journal)))

    def _optuna_sampler(self, options: SearchOptions, seed: int) -> Any:
        """The sampler by its name. A quarter of the trials, from 4 to 10, is random before a model is fitted."""
        samplers, several = self.optuna.samplers, len(self.objectives) > 1
        startup = max(4, min(10, options.trials // 4))
        match options.searcher:
            case "gp":
                return samplers.GPSampler(seed=seed, n_startup_trials=startup, deterministic_objective=False)
            case "cmaes":
                return samplers.CmaEsSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
            case "nsgaii":
                return samplers.NSGAIISampler(seed=seed, population_size=max(4, min(50, options.trials // 4)))
        return samplers.TPESampler(seed=seed, n_startup_trials=startup, constant_liar=not several)

    def sample(self, number: int) -> TrialValues:
        point = dict(self.space.points[number - 1]) if number <= len(self.space.points) else {}
        if point:
            self.resume_trial(number, point)
        trial = self.open_trials.pop(number, None) or self.study.ask()
        self.open_trials[number] = trial
        trial.set_user_attr("trial", number)
        values: TrialValues = {}
        for key, domain in self.space.domains.items():
            if self.space.is_active(key, values):
                suggested = suggest_value(trial, key, domain)
                # Optuna records the lower bound instead of 0.
                values[key] = point[key] if point.get(key) == 0 else suggested
        return values

    def resume_trial(self, number: int, values: TrialValues) -> None:
        """Open a trial of Optuna with these values, so that Optuna takes it into account."""
        self.study.enqueue_trial({key: _clipped(self.space, key, value) for key, value in values.items()})
        self.open_trials[number] = self.study.ask()
        self.open_trials[number].set_user_attr("trial", number)
        for key, domain in self.space.domains.items():
            if key in values:
                suggest_value(self.open_trials[number], key, domain)

    def on_trial_result(self, number: int, result: Mapping[str, Any]) -> None:
        value, round = result.get(self.objectives[0].column), int(result.get("round", 0))
        new = round > self.reported_rounds.get(number, 0)
        if len(self.objectives) == 1 and value is not None and new and number in self.open_trials:
            self.open_trials[number].report(value, round)
            self.reported_rounds[number] = round

    def on_trial_end(self, number: int, result: Mapping[str, Any], status: TrialStatus) -> None:
        if status is TrialStatus.STOPPED:  # Tune reports the round after which it stops a trial only here
            self.on_trial_result(number, result)
        trial = self.open_trials.pop(number, None)
        if trial is None:
            return
        state, values = _final_state(self.optuna, self.objectives, result, status)
        self.study.tell(trial, values, state=state)


def _final_state(
    optuna: Any, objectives: Sequence[Objective], result: Mapping[str, Any], status: TrialStatus
) -> tuple[Any, list[float] | None]:
    """Optuna's state of an ended trial, and its objective values where it is complete."""
    values = [result.get(objective.column) for objective in objectives]
    states = optuna.trial.TrialState
    if status is TrialStatus.STOPPED and len(values) == 1:  # Hyperband may stop a paused trial without a result
        return states.PRUNED, None
    if status is TrialStatus.FAILED or not all(map(is_finite_number, values)):
        return states.FAIL, None
    return states.COMPLETE, [float(value) for value in values if value is not None]


def past_trial(optuna: Any, space: Space, objectives: Sequence[Objective], record: TrialRecord) -> Any:
    """The trial of Optuna for an ended trial of a search."""
    state, values = _final_state(optuna, objectives, record.last, record.status)
    value = record.last.get(objectives[0].column)
    rounds = {record.rounds: value} if state.name == "PRUNED" and value is not None else {}
    searched = {key: value for key, value in record.values.items() if key in space.domains}
    return optuna.trial.create_trial(
        state=state,
        values=values,
        params={key: _clipped(space, key, value) for key, value in searched.items()},
        distributions={key: _distribution(optuna, space.domains[key]) for key in searched},
        intermediate_values=rounds,
        user_attrs={"trial": record.number},
    )


def optuna_importance(
    space: Space, objective: Objective, records: Sequence[TrialRecord], min_trials: int = 6
) -> dict[str, float]:
    """The importance of each key that all trials have, by PED-ANOVA (Watanabe et al. 2023).

    Empty without Optuna, for fewer than `min_trials` trials with a value, and if all have the same value.
    """
    if find_spec("optuna") is None:
        return {}
    optuna = import_optuna()
    trials = [past_trial(optuna, space, [objective], each) for each in records if not each.unfinished]
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    keys = set(space.domains).intersection(*(trial.params for trial in complete))
    if len(complete) < min_trials or not keys or len({trial.value for trial in complete}) == 1:
        return {}
    study = optuna.create_study(direction="maximize" if objective.better == "higher" else "minimize")
    study.add_trials(complete)
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator, params=sorted(keys)))


def _clipped(space: Space, key: str, value: Any) -> Any:
    domain = space.domains.get(key)
    return _to_optuna(value if domain is None else distributions.clip(domain, value))


def _distribution(optuna: Any, domain: Domain) -> Any:
    module, bounds = optuna.distributions, distributions.bounds(domain)
    if isinstance(domain, Categorical):
        return module.CategoricalDistribution([_to_optuna(value) for value in domain.categories])
    step, log = distributions.step_of(domain), distributions.is_logarithmic(domain)
    if isinstance(domain, Integer):
        return module.IntDistribution(*bounds, log=log, step=1 if log else step or 1)
    return module.FloatDistribution(*bounds, log=log, step=None if log else step)


def suggest_value(trial: Any, key: str, domain: Domain) -> Any:
    """The value of `key` that Optuna suggests for its `trial`, within the bounds of `domain`."""
    if isinstance(domain, Categorical):
        chosen = trial.suggest_categorical(key, [_to_optuna(value) for value in domain.categories])
        return next(
            value
            for value in domain.categories
            if _to_optuna(value) == chosen and type(_to_optuna(value)) is type(chosen)
        )
    first, last = distributions.bounds(domain)
    step, log = distributions.step_of(domain), distributions.is_logarithmic(domain)
    if isinstance(domain, Integer):
        value = trial.suggest_int(key, first, last, log=log, step=1 if log else step or 1)
    else:
        value = trial.suggest_float(key, first, last, log=log, step=None if log else step)
    return distributions.clip(domain, value)


def _to_optuna(value: Any) -> Any:
    return repr(value) if isinstance(value, tuple) else value  # Optuna stores no lists


def import_optuna() -> Any:
    """The package Optuna, without its log lines. Raises ConfigError if it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("this --searcher needs Optuna: pip install 'raysim[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
