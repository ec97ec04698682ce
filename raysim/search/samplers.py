"""The samplers of a search: random, grid, Optuna. A new one is added to SamplerName and `build_sampler`.

A sampler maps the number of a trial to its values, so that a resumed search samples the same trials.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ray.tune.search.sample import Categorical, Domain, Integer

from raysim.core.errors import ConfigError
from raysim.core.numeric import is_finite_number
from raysim.core.seeding import stable_seed
from raysim.search import distributions
from raysim.search.objectives import Objective
from raysim.search.space import Space
from raysim.search.trial_store import TrialRecord, TrialStatus

if TYPE_CHECKING:
    from raysim.search.request import SearchRequest
    from raysim.search.spec import SearchSpec

TrialValues = dict[str, Any]


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


def build_sampler(request: SearchRequest, spec: SearchSpec, records: Sequence[TrialRecord]) -> Sampler:
    """The sampler of a search; `records` are the trials of earlier sessions, which Optuna learns from."""
    seed = spec.variants[0].seed
    if request.options.searcher == "optuna" and not request.samples_whole_grid:
        ended = [record for record in records if not record.unfinished]
        return OptunaSampler(spec.space, seed, spec.objectives, ended)
    return listed_sampler(request.listed_trials(spec.space, seed))


def listed_sampler(trials: Sequence[TrialValues]) -> Sampler:
    """The values of trials that are known before the search: those of random search, or all combinations."""
    return Sampler(lambda number: trials[number - 1] if number <= len(trials) else None)


class OptunaSampler(Sampler):
    """Optuna's TPE. Values are requested key by key: a conditional key only in trials of its algorithm."""

    def __init__(self, space: Space, seed: int, objectives: Sequence[Objective], ended: Sequence[TrialRecord]) -> None:
        super().__init__(self._sample)
        self.optuna = _import_optuna()
        self.space, self.objectives = space, objectives
        directions = ["maximize" if objective.better == "higher" else "minimize" for objective in objectives]
        # The seed depends on the number of ended trials: a resumed search must not repeat its first samples.
        optuna_seed = stable_seed(seed, "optuna", len(ended)) % 2**31
        sampler = self.optuna.samplers.TPESampler(seed=optuna_seed, constant_liar=len(directions) == 1)
        self.study = self.optuna.create_study(directions=directions, sampler=sampler)
        self.open_trials: dict[int, Any] = {}
        for record in ended:
            self.study.add_trial(self._past_trial(record))

    def _sample(self, number: int) -> TrialValues:
        point = dict(self.space.points[number - 1]) if number <= len(self.space.points) else {}
        if point:
            self.resume_trial(number, point)
        trial = self.open_trials.pop(number, None) or self.study.ask()
        self.open_trials[number] = trial
        values: TrialValues = {}
        for key, domain in self.space.domains.items():
            if self.space.is_active(key, values):
                suggested = suggest_value(trial, key, domain)
                values[key] = (
                    point[key] if point.get(key) == 0 else suggested
                )  # Optuna records the lower bound instead of 0
        return values

    def resume_trial(self, number: int, values: TrialValues) -> None:
        """Open a trial of Optuna with these values, so that Optuna takes it into account."""
        self.study.enqueue_trial({key: self._to_optuna(key, value) for key, value in values.items()})
        self.open_trials[number] = self.study.ask()
        for key, domain in self.space.domains.items():
            if key in values:
                suggest_value(self.open_trials[number], key, domain)

    def on_trial_result(self, number: int, result: Mapping[str, Any]) -> None:
        value = result.get(self.objectives[0].column)
        if len(self.objectives) == 1 and value is not None and number in self.open_trials:
            self.open_trials[number].report(value, int(result["round"]))

    def on_trial_end(self, number: int, result: Mapping[str, Any] | None, status: TrialStatus) -> None:
        trial = self.open_trials.pop(number, None)
        if trial is None:
            return
        state, values = self._final_state(result or {}, status)
        self.study.tell(trial, values, state=state)

    def _final_state(self, result: Mapping[str, Any], status: TrialStatus) -> tuple[Any, list[float] | None]:
        """Optuna's state of an ended trial, and its objective values where it is complete."""
        values = [result.get(objective.column) for objective in self.objectives]
        states = self.optuna.trial.TrialState
        if status is TrialStatus.STOPPED and len(values) == 1:  # Hyperband may stop a paused trial without a result
            return states.PRUNED, None
        if status is TrialStatus.FAILED or not all(map(is_finite_number, values)):
            return states.FAIL, None
        return states.COMPLETE, [float(value) for value in values if value is not None]

    def _past_trial(self, record: TrialRecord) -> Any:
        state, values = self._final_state(record.last, record.status)
        value = record.last.get(self.objectives[0].column)
        rounds = {record.rounds: value} if state.name == "PRUNED" and value is not None else {}
        searched = {key: value for key, value in record.values.items() if key in self.space.domains}
        return self.optuna.trial.create_trial(
            state=state,
            values=values,
            params={key: self._to_optuna(key, value) for key, value in searched.items()},
            distributions={key: self._distribution(self.space.domains[key]) for key in searched},
            intermediate_values=rounds,
        )

    def _to_optuna(self, key: str, value: Any) -> Any:
        domain = self.space.domains.get(key)
        return _to_optuna(value if domain is None else distributions.clip(domain, value))

    def _distribution(self, domain: Domain) -> Any:
        module, bounds = self.optuna.distributions, distributions.bounds(domain)
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


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("--searcher optuna needs Optuna: pip install 'raysim[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
