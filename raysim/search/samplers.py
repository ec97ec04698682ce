"""What a search tries next: random points, a grid, or Optuna's; every trial has a number, and its values hang on it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.tune.search import SearchAlgorithm, Searcher, SearchGenerator
from ray.tune.search.sample import Categorical, Domain, Integer

from raysim.core.errors import ConfigError
from raysim.core.seeding import stable_seed
from raysim.search import distributions
from raysim.search.objectives import Objective, is_finite_number
from raysim.search.space import Space
from raysim.search.trial_store import TrialRecord

TRIAL_NUMBER = "trial"  # the key of Tune's configuration that bears the trial's number
Values = dict[str, Any]


class SampleSource:
    """Where the values of a new trial come from; `on_trial_end` hears how each ended."""

    def __init__(self, draw: Callable[[int], Values | None]) -> None:
        self.draw = draw

    def again(self, number: int, values: Values) -> None:
        """A trial of an earlier session goes on."""

    def step(self, number: int, result: Mapping[str, Any]) -> None:
        """A round of it has ended."""

    def on_trial_end(self, number: int, result: Mapping[str, Any] | None, status: str) -> None:
        """It has ended."""


def random_source(space: Space, seed: int) -> SampleSource:
    """Points drawn by (seed, number); keys that are a grid go through theirs, for each draw of the others."""
    rows = space.grid(only=False)

    def draw(number: int) -> Values:
        turn, place = divmod(number - 1, len(rows))
        return space.counted(space.sample(seed, turn + 1) | rows[place])

    return SampleSource(draw)


def grid_source(space: Space) -> SampleSource:
    """Every combination, once."""
    rows = space.grid()
    return SampleSource(lambda number: rows[number - 1] if number <= len(rows) else None)


class OptunaSource(SampleSource):
    """Optuna's TPE, asked key by key: a key that counts with one algorithm only is asked with that one alone."""

    def __init__(self, space: Space, seed: int, objectives: Sequence[Objective], ended: Sequence[TrialRecord]) -> None:
        super().__init__(self._ask)
        self.optuna = _optuna()
        self.space, self.objectives = space, objectives
        ways = ["maximize" if objective.better == "higher" else "minimize" for objective in objectives]
        again = stable_seed(seed, "optuna", len(ended)) % 2**31  # one that goes on must not draw its first points anew
        sampler = self.optuna.samplers.TPESampler(seed=again, constant_liar=len(ways) == 1)
        self.study = self.optuna.create_study(directions=ways, sampler=sampler)
        self.asked: dict[int, Any] = {}
        for record in ended:
            self.study.add_trial(self._past(record))

    def _ask(self, number: int) -> Values:
        if number <= len(self.space.points):
            self.again(number, dict(self.space.points[number - 1]))
        trial = self.asked.pop(number, None) or self.study.ask()
        self.asked[number] = trial
        values: Values = {}
        for key, domain in self.space.domains.items():
            if self.space.is_active(key, values):
                values[key] = suggest_value(trial, key, domain)
        return values

    def again(self, number: int, values: Values) -> None:
        """The next question is answered with these values: so Optuna knows what is under way."""
        self.study.enqueue_trial({key: _plain(value) for key, value in values.items()})
        self.asked[number] = self.study.ask()
        for key, domain in self.space.domains.items():
            if key in values:
                suggest_value(self.asked[number], key, domain)

    def step(self, number: int, result: Mapping[str, Any]) -> None:
        value = result.get(self.objectives[0].column)
        if len(self.objectives) == 1 and value is not None and number in self.asked:
            self.asked[number].report(value, int(result["round"]))

    def on_trial_end(self, number: int, result: Mapping[str, Any] | None, status: str) -> None:
        trial = self.asked.pop(number, None)
        if trial is None:
            return
        state, values = self._judged(result or {}, status)
        self.study.tell(trial, values, state=state)

    def _judged(self, result: Mapping[str, Any], status: str) -> tuple[Any, list[float] | None]:
        values = [result.get(objective.column) for objective in self.objectives]
        states = self.optuna.trial.TrialState
        if status == "stopped" and len(values) == 1:  # Hyperband stops a trial that waits, without a result
            return states.PRUNED, None
        if status == "failed" or not all(map(is_finite_number, values)):
            return states.FAIL, None
        return states.COMPLETE, [float(value) for value in values if value is not None]

    def _past(self, record: TrialRecord) -> Any:
        state, values = self._judged(record.last, record.status)
        value = record.last.get(self.objectives[0].column)
        rounds = {record.rounds: value} if state.name == "PRUNED" and value is not None else {}
        kept = {key: value for key, value in record.values.items() if key in self.space.domains}
        return self.optuna.trial.create_trial(
            state=state,
            values=values,
            params={key: _plain(value) for key, value in kept.items()},
            distributions={key: self._distribution(self.space.domains[key]) for key in kept},
            intermediate_values=rounds,
        )

    def _distribution(self, domain: Domain) -> Any:
        kinds, first_last = self.optuna.distributions, distributions.bounds(domain)
        if isinstance(domain, Categorical):
            return kinds.CategoricalDistribution([_plain(value) for value in domain.categories])
        step, log = distributions.step_of(domain), distributions.logarithmic(domain)
        if isinstance(domain, Integer):
            return kinds.IntDistribution(*first_last, log=log, step=1 if log else step or 1)
        return kinds.FloatDistribution(*first_last, log=log, step=None if log else step)


def suggest_value(trial: Any, key: str, domain: Domain) -> Any:
    """Optuna's value of `key`, within the same ends."""
    if isinstance(domain, Categorical):
        chosen = trial.suggest_categorical(key, [_plain(value) for value in domain.categories])
        return next(
            value for value in domain.categories if _plain(value) == chosen and type(_plain(value)) is type(chosen)
        )
    first, last = distributions.bounds(domain)
    step, log = distributions.step_of(domain), distributions.logarithmic(domain)
    if isinstance(domain, Integer):
        value = trial.suggest_int(key, first, last, log=log, step=1 if log else step or 1)
    else:
        value = trial.suggest_float(key, first, last, log=log, step=None if log else step)
    return distributions.clip(domain, value)


def _plain(value: Any) -> Any:
    return repr(value) if isinstance(value, tuple) else value  # Optuna keeps no lists


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("--searcher optuna needs Optuna: pip install 'raysim[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


class TuneSearcher(Searcher):
    """Ray Tune's side of a source: first the trials that an earlier session left, then those of the numbers `new`."""

    def __init__(
        self, source: SampleSource, left: Sequence[TrialRecord], new: Sequence[int], opened: Callable[..., None]
    ) -> None:
        super().__init__()
        self.source, self.opened = source, opened
        self.left, self.new = deque(left), deque(new)
        self.numbers: dict[str, int] = {}
        for record in left:
            if record.unfinished:
                source.again(record.number, dict(record.values))

    def suggest(self, trial_id: str) -> Any:
        """The values of the next trial with its number; FINISHED after the last."""
        if self.left:
            record = self.left.popleft()
            number, values = record.number, dict(record.values)
        else:
            drawn = self.source.draw(self.new[0]) if self.new else None
            if drawn is None:
                return Searcher.FINISHED
            number, values = self.new.popleft(), drawn
            self.opened(number, values)
        self.numbers[trial_id] = number
        return {TRIAL_NUMBER: number, **values}

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        self.source.step(self.numbers[trial_id], result)

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Tune has ended the trial: done, stopped by the scheduler, or failed."""
        result = result or {}
        failed = error or result.get("failed")
        self.source.on_trial_end(
            self.numbers[trial_id], result, "failed" if failed else "done" if result.get("last") else "stopped"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune keeps it for a restore that is never asked for."""
        return {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: Any, **spec: Any) -> bool:
        """Everything is known already."""
        return True

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a search goes on from its trials' folders."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing."""


class PBTSearchAlgorithm(SearchAlgorithm):
    """A suggester for PBT, which refuses Tune's own wrapper of one, for it changes values that a searcher chose.

    Here the source knows: its draws are independent of what comes of them.
    """

    def __init__(self, suggester: TuneSearcher) -> None:
        self.inner = SearchGenerator(suggester)

    @property
    def total_samples(self) -> int:
        """How many trials there will be."""
        return int(self.inner.total_samples)

    def set_search_properties(self, metric: str | None, mode: str | None, config: Any, **spec: Any) -> bool:
        """Everything is known already."""
        return True

    def add_configurations(self, experiments: Any) -> None:
        self.inner.add_configurations(experiments)

    def next_trial(self) -> Any:
        return self.inner.next_trial()

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        self.inner.on_trial_complete(trial_id, result, error)

    def is_finished(self) -> bool:
        return bool(self.inner.is_finished()) or bool(self._finished)

    def save_to_dir(self, dirpath: str, **kwargs: Any) -> None:
        """Nothing: a search goes on from its trials' folders."""
