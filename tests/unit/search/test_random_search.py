"""Random search fills the space evenly, repeats no configuration, and is a function of the space and the seed."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from ray import tune
from scipy.stats import qmc

from raysim.core.errors import ConfigError
from raysim.search import distributions
from raysim.search.random_search import random_trials
from raysim.search.request import build_request
from raysim.search.space import Space, from_cli, from_mapping


def imbalance(trials, key):
    """The largest difference between the counts of two values among the first N trials, over all N."""
    values, worst = {trial[key] for trial in trials}, 0
    counts = Counter()
    for trial in trials:
        counts[trial[key]] += 1
        worst = max(worst, max(counts.values()) - min(counts[value] for value in values))
    return worst


def test_sixteen_samples_fill_three_ranges_more_evenly_than_independent_ones():
    space = Space(from_cli(["a=uniform(0,1)", "b=loguniform(1e-4,1)", "c=uniform(0,1)"]))
    trials = list(random_trials(space, 0, 16))
    unit = np.array([[trial["a"], np.log10(trial["b"]) / 4 + 1, trial["c"]] for trial in trials])
    independent = [qmc.discrepancy(np.random.default_rng(seed).random((16, 3))) for seed in range(50)]
    assert qmc.discrepancy(unit) < 0.007 < min(independent)
    for column in unit.T:
        assert sorted((column * 16).astype(int)) == list(range(16))  # one sample in each sixteenth


def test_counts_of_the_values_of_a_choice_differ_by_at_most_one():
    space = Space(from_cli(["a=choice(1,2,3)", "b=choice(x,y)", "c=uniform(0,1)", "d=choice([4,8],[8])"]))
    for seed in range(5):
        trials = list(random_trials(space, seed, 16))
        assert [imbalance(trials, key) for key in ("a", "b", "d")] == [1, 1, 1]


@pytest.mark.parametrize("sizes", [(2,), (2, 3), (4, 4), (3, 2, 2), (1, 5)])
def test_a_finite_space_is_drawn_once_without_repetition(sizes):
    space = Space(from_cli([f"k{i}=choice({','.join(map(str, range(size)))})" for i, size in enumerate(sizes)]))
    trials = list(random_trials(space, 0, 1000))
    assert sorted(map(repr, trials)) == sorted(map(repr, space.grid()))
    assert all(imbalance(trials, key) == (len(values.categories) > 1) for key, values in space.domains.items())


def test_whole_numbers_and_steps_are_drawn_without_repetition():
    space = Space(from_cli(["a=randint(1,5)", "b=quniform(0,0.6,0.3)", "c=lograndint(1,4)"]))
    trials = list(random_trials(space, 1, 100))
    assert len(trials) == len({repr(trial) for trial in trials}) == 4 * 3 * 3


def test_the_values_of_a_trial_do_not_depend_on_the_number_of_trials():
    space = Space(from_cli(["a=choice(1,2,3)", "b=uniform(0,1)", "g=grid(x,y)"]))
    trials = list(random_trials(space, 3, 40))
    assert len(trials) == 80
    assert list(random_trials(space, 3, 7)) == trials[:14]
    assert [trial["g"] for trial in trials[:4]] == ["x", "y", "x", "y"]
    assert trials[0] == trials[1] | {"g": "x"}  # the values of the grid are compared at equal values of the other keys
    assert list(random_trials(space, 4, 7)) != trials[:14]


def test_every_algorithm_has_as_many_trials_until_its_configurations_are_drawn():
    space = Space(from_cli(["algorithm=choice(fedavg,fedprox,fedsm)", "algorithm.fedsm.pull=uniform(0.5,1)"]))
    trials = list(random_trials(space, 0, 10))
    assert sorted(trial["algorithm"] for trial in trials) == ["fedavg", "fedprox", *["fedsm"] * 8]
    pulls = [trial["algorithm.fedsm.pull"] for trial in trials if trial["algorithm"] == "fedsm"]
    assert sorted(int((pull - 0.5) * 16) for pull in pulls) == list(range(8))
    both = Space(from_cli(["algorithm=choice(fedprox,fedsm)", "algorithm.lr=choice(0.1,0.2)"]))
    assert len(list(random_trials(both, 0, 10))) == 4


def test_the_conditional_key_of_a_grid_of_algorithms_has_a_value_in_each_of_its_trials():
    space = Space(from_cli(["algorithm=grid(fedavg,fedprox)", "algorithm.fedprox.mu=loguniform(0.01,1)"]))
    trials = list(random_trials(space, 0, 6))
    assert [trial["algorithm"] for trial in trials] == ["fedavg", *["fedprox"] * 6]
    assert all("algorithm.fedprox.mu" in trial for trial in trials[1:])


def test_points_come_first_and_are_not_drawn_again():
    space = from_mapping({"a": tune.choice([1, 2]), "b": tune.choice([3, 4])}, [{"a": 2, "b": 4}, {"a": 2, "b": 4}])
    trials = list(random_trials(space, 0, 10))
    assert trials[0] == {"a": 2, "b": 4}
    assert len(trials) == len({repr(trial) for trial in trials}) == 4


def test_a_population_repeats_the_configurations_of_a_finite_space():
    space = Space(from_cli(["algorithm.lr=choice(0.1,0.2)"]))
    trials = [trial["algorithm.lr"] for trial in random_trials(space, 0, 5, repeated=True)]
    assert [trials.count(lr) for lr in (0.1, 0.2)] in ([2, 3], [3, 2])
    request = build_request(space, {"rounds": 5}, {}, {"scheduler": "pbt", "trials": 5})
    assert request.trial_count(space, 0) == 5
    assert build_request(space, {}, {}, {"trials": 5}).trial_count(space, 0) == 2


def test_a_large_finite_space_is_not_listed():
    space = Space(from_cli([f"k{i}=choice({','.join(map(str, range(40)))})" for i in range(6)]))
    assert len({repr(trial) for trial in islice(random_trials(space, 0, 100), 100)}) == 100


@pytest.mark.parametrize(
    ("text", "probabilities", "values"),
    [
        ("uniform(2, 4)", (0, 0.25, 1), (2.0, 2.5, 4.0)),
        ("loguniform(0.01, 1)", (0, 0.5, 1), (0.01, 0.1, 1.0)),
        ("quniform(0.3, 0.9, 0.3)", (0, 0.32, 0.34, 0.99, 1), (0.3, 0.3, 0.6, 0.9, 0.9)),
        ("randint(1, 5)", (0, 0.24, 0.26, 0.76, 1), (1, 1, 2, 4, 4)),
        ("lograndint(1, 9)", (0, 0.38, 0.39, 1), (1, 1, 2, 8)),  # ln(1.5/0.5) / ln(8.5/0.5) = 0.388
    ],
)
def test_a_quantile_is_the_value_with_this_probability_below_it(text, probabilities, values):
    domain = distributions.parse_distribution(text, "k")
    found = [distributions.quantile(domain, probability) for probability in probabilities]
    assert found == pytest.approx(list(values))
    assert {type(value) for value in found} == {type(values[0])}


def test_a_misspelled_distribution_has_a_suggestion():
    with pytest.raises(ConfigError, match=r"cannot read 'logunifrom\(1,2\)' \(did you mean 'loguniform'\?\): expected"):
        from_cli(["algorithm.lr=logunifrom(1,2)"])
