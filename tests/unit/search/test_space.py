"""Search spaces: distributions as text, their bounds, conditional keys, and refusals before the first trial."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from ray import tune

from raysim.cli.main import main
from raysim.config.merge import parse_pairs
from raysim.config.resolve import resolve
from raysim.core.errors import ConfigError
from raysim.core.registry import algorithms
from raysim.search import distributions
from raysim.search.request import build_request
from raysim.search.space import Space, from_cli, from_mapping
from raysim.search.space_files import installed_spaces, read_space
from raysim.search.space_validation import check_space
from tests.support.paths import ROOT

TEXTS = {
    "uniform(0.2, 1)": [0.2, 1.0],
    "loguniform(0.0001, 0.1)": [0.0001, 0.1],
    "quniform(0.3, 0.9, 0.3)": [0.3, 0.9],
    "randint(1, 9)": [1, 8],
    "lograndint(1, 9)": [1, 8],
    "qrandint(3, 9, 3)": [3, 9],
    "choice(1, 'sgd', None, True, [16, 32])": [1, "sgd", None, True, (16, 32)],
    "grid('fedprox', 'fedsm')": ["fedprox", "fedsm"],
}


@pytest.mark.parametrize("text", TEXTS)
def test_text_and_distribution_of_tune_are_equal(text):
    domain = distributions.parse_distribution(text, "k")
    assert distributions.bounds(domain) == TEXTS[text]
    assert distributions.bounds(distributions.parse_distribution(distributions.to_text(domain), "k")) == TEXTS[text]
    rng = np.random.default_rng(0)
    assert all(distributions.contains(domain, distributions.sample(domain, rng)) for _ in range(50))


def test_bare_names_are_text_and_no_code_is_run(tmp_path):
    assert distributions.bounds(distributions.parse_distribution("choice(fedprox, fedsm, true)", "k")) == [
        "fedprox",
        "fedsm",
        True,
    ]
    for text in (
        f"open('{tmp_path}/x', 'w')",
        "uniform(__import__('os').getpid(), 2)",
        "uniform(0, 1",
        "0.5",
        "choice(a.b)",
    ):
        with pytest.raises(ConfigError, match="expected uniform"):
            distributions.parse_distribution(text, "k")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("uniform(1, 0)", "lower bound must be below"),
        ("loguniform(0, 1)", "lower bound of a logarithmic range must be above 0"),
        ("randint(0.5, 2)", "whole numbers"),
        ("uniform(0, nan)", "expected numbers"),
        ("choice()", "at least one value"),
        ("quniform(0, 1, 0)", "the step and must be above 0"),
    ],
)
def test_an_invalid_range_is_refused(text, match):
    with pytest.raises(ConfigError, match=match):
        distributions.parse_distribution(text, "k")


def test_a_distribution_without_bounds_is_refused():
    for domain in (tune.randn(0, 1), tune.sample_from(lambda spec: 1)):
        with pytest.raises(ConfigError, match="no bounds to check"):
            from_mapping({"algorithm.lr": domain})


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["algorithm.lrr=uniform(0.1,1)"], r"unknown key 'algorithm.lrr' \(did you mean 'algorithm.lr'\?\)"),
        (["algorithm.lr=uniform(0,1)"], "algorithm.lr is uniform.*expected > 0|algorithm.lr=0.0"),
        (["algorithm.momentum=choice(0.5,1.0)"], "algorithm.momentum=1.0"),
        (["algorithm.epochs=uniform(1,3)"], "whole number|algorithm.epochs"),
        (["algorithm=choice(fedavg,fedsn)"], "did you mean 'fedsm'"),
        (["algorithm=choice(fedavg,fedsm)", "algorithm.pull=uniform(0.5,1)"], "unknown key 'algorithm.pull'"),
        (["algorithm.fedsm.pull=uniform(0.5,1)"], "needs algorithm=choice"),
        (
            ["algorithm=choice(fedprox,fedsm)", "algorithm.ditto.lam=uniform(0,1)"],
            r"ditto, which is not searched; add it: --space 'algorithm=choice\(fedprox, fedsm, ditto\)'",
        ),
        (["resources.client_actors=choice(1,2)"], "changes no result"),
        (["task.data.val=choice(1,2)"], "compared on different cases"),
    ],
)
def test_a_wrong_key_or_bound_is_refused(arguments, match):
    with pytest.raises(ConfigError, match=match):
        check_space(Space(from_cli(arguments)), {})


def test_a_point_out_of_range_is_refused():
    space = from_mapping({"algorithm.lr": tune.loguniform(1e-4, 1e-2)}, [{"algorithm.lr": 0.1}])
    with pytest.raises(ConfigError, match=r"algorithm.lr=0.1, outside of loguniform"):
        check_space(space, {})
    with pytest.raises(ConfigError, match="which is not searched"):
        check_space(from_mapping({"algorithm.lr": tune.loguniform(1e-4, 1e-2)}, [{"algorithm.epochs": 1}]), {})


def test_a_point_may_leave_out_the_term_of_a_logarithmic_weight():
    # A logarithmic range has no 0, and strength 0 is the trial to compare with.
    key = "algorithm.strength"
    space = from_mapping({key: tune.loguniform(0.1, 1000)}, [{key: 0.0}, {key: 0.1}])
    check_space(space, parse_pairs(["algorithm=gradient_alignment", "algorithm.optimizer=sgd", "algorithm.momentum=0"]))
    assert [space.position(key, value) for value in (0.0, 0.1, 10.0, 1000.0)] == pytest.approx([0, 0, 0.5, 1])
    assert [space.sample(0, number)[key] for number in (1, 2)] == [0.0, 0.1]
    assert space.sample(0, 3)[key] >= 0.1
    assert space.override({key: tune.loguniform(1, 10)}).points == ({key: 0.0}, {})
    assert space.override({key: tune.uniform(1, 10)}).points == ({}, {})
    assert read_space("gradient_alignment").points[0][key] == 0


CONDITIONAL = [
    "algorithm=choice(fedprox,fedsm)",
    "algorithm.fedsm.pull=choice(0.6,0.8)",
    "algorithm.fedprox.mu=choice(0,1)",
]


def test_a_conditional_key_is_active_only_with_its_algorithm():
    space = Space(from_cli([*CONDITIONAL, "algorithm.lr=loguniform(1e-4,1e-2)"]))
    check_space(space, {})
    for number in range(1, 20):
        values = space.sample(0, number)
        config = resolve(space.apply({}, values))
        assert config.algorithm.lr == values["algorithm.lr"]
        if values["algorithm"] == "fedsm":
            assert config.algorithm.pull == values["algorithm.fedsm.pull"]
            assert "algorithm.fedprox.mu" not in values
        else:
            assert config.algorithm.mu == values["algorithm.fedprox.mu"]
    grid = Space(from_cli(CONDITIONAL)).grid()
    assert len(grid) == 4  # not 2 x 2 x 2
    assert [row["algorithm"] for row in grid].count("fedsm") == 2


def test_samples_depend_only_on_seed_and_number():
    space = Space(from_cli(["algorithm.lr=loguniform(1e-4,1e-2)", "algorithm.epochs=randint(1,5)"]))
    assert space.sample(3, 7) == space.sample(3, 7)
    assert len({space.sample(3, n)["algorithm.lr"] for n in range(1, 9)} | {space.sample(4, 7)["algorithm.lr"]}) == 9


def test_an_argument_removes_its_key_from_the_space():
    searched = {"algorithm.pull": tune.uniform(0.5, 1), "algorithm.lr": tune.loguniform(1e-4, 1e-2)}
    space = from_mapping({"algorithm": "fedsm", **searched}, [{"algorithm.pull": 0.7, "algorithm.lr": 1e-3}])
    found = build_request(space, {}, parse_pairs(["algorithm.pull=0.9"]), {})
    assert list(found.space.domains) == ["algorithm.lr"]
    assert found.space.points == ({"algorithm.lr": 1e-3},)
    config = resolve(found.space.apply(found.base, found.space.sample(0, 1)))
    assert (config.algorithm.pull, config.algorithm.lr) == (0.9, 1e-3)


@pytest.mark.parametrize(
    ("options", "arguments", "match"),
    [
        ({"metric": "mean,bytes"}, [], "need --searcher tpe, gp or nsgaii"),
        ({"metric": "mean,bytes", "searcher": "cmaes"}, [], "need --searcher tpe, gp or nsgaii"),
        ({"metric": "mean,bytes", "searcher": "tpe", "stop": "auto"}, [], "--stop auto compares one objective"),
        ({"scheduler": "pbt"}, ["rounds=choice(2,3)"], "rounds"),
        ({"scheduler": "asha"}, ["rounds=choice(2,3)"], "use --scheduler fifo"),
        ({"searcher": "tpe"}, ["algorithm.epochs=grid(1,2)"], "with --searcher tpe use choice"),
        ({"scheduler": "hyperband", "max_concurrent": 2}, [], "use --scheduler asha"),
        ({"seeds": 2}, ["seed=choice(0,1)"], "keep one of them"),
        ({"trials": 0}, [], "trials"),
        ({"trials": 5, "searcher": "grid"}, [], "a grid runs every combination once.*remove --trials"),
        ({"scheduler": "asha"}, ["evaluate_every=20"], "only the last round is evaluated"),
        ({"scheduler": "asha"}, ["rounds=1"], "only the last round is evaluated; set rounds=2 or more"),
        ({}, ["algorithm.lr=0.1"], "arguments fix every key of the space, such as algorithm.lr=0.1; remove one"),
        ({"scheduler": "hyperband"}, ["evaluate_every=2"], "evaluate_every=1"),
        ({}, ["algorithm=choice(fedavg,fedprox)", "algorithm.fedprox.mu=grid(0.1,1)"], "a grid of one algorithm"),
        ({"tracker": "mlflow"}, [], "pip install mlflow"),
    ],
)
def test_contradicting_options_are_refused(options, arguments, match):
    space = ["algorithm.lr=loguniform(1e-4,1e-2)", *(argument for argument in arguments if argument.endswith(")"))]
    with pytest.raises(ConfigError, match=match):
        build_request(
            Space(from_cli(space)),
            {},
            parse_pairs(argument for argument in arguments if not argument.endswith(")")),
            options,
        )


def test_early_stopping_of_held_out_sites_and_a_number_of_them_are_refused():
    with pytest.raises(ConfigError, match="different held-out sites; use --scheduler fifo"):
        build_request(Space(), {}, {}, {"holdout": "each", "scheduler": "asha"})
    with pytest.raises(ConfigError, match="each site is held out once"):
        build_request(Space(), {}, {}, {"holdout": "each", "trials": 3})


def test_an_argument_for_a_key_of_the_algorithm_keeps_the_algorithm_searched():
    methods = read_space("methods")
    found = build_request(methods, {}, parse_pairs(["algorithm.epochs=2", "algorithm.fedsm.pull=0.7"]), {})
    assert found.space.algorithm_names == methods.algorithm_names
    assert distributions.bounds(found.space.domains["algorithm.fedsm.pull"]) == [0.7]
    for number in range(1, 9):
        config = resolve(found.space.apply(found.base, found.space.sample(0, number)))
        assert config.algorithm.epochs == 2
        assert getattr(config.algorithm, "pull", 0.7) == 0.7
    more = build_request(
        methods, {}, parse_pairs(["algorithm.fedsm.selector_lr=0.5"]), {}
    ).space  # a key that the space does not search
    assert distributions.bounds(more.domains["algorithm.fedsm.selector_lr"]) == [0.5]
    fixed = build_request(methods, {}, parse_pairs(["algorithm.lr=0.01"]), {}).space
    assert not [key for key in fixed.domains if key.endswith(".lr")]
    networks = Space(from_cli(["network=choice(unet,basicunet)", "algorithm.lr=uniform(0.1,0.2)"]))
    assert "task.network" in build_request(networks, {}, parse_pairs(["network.norm=batch"]), {}).space.domains


def test_points_are_checked_and_lists_in_them_are_values():
    lr = {"algorithm.lr": tune.loguniform(1e-4, 1e-2), "network.channels": tune.choice([[4, 8], [8, 16]])}
    with pytest.raises(ConfigError, match=r"a point sets algorithm.lrr, which is not searched .did you mean"):
        from_mapping(lr, [{"algorithm.lrr": 0.1}])
    with pytest.raises(ConfigError, match="expected a list of points"):
        from_mapping(lr, {"algorithm.lr": 0.1})
    found = build_request(from_mapping(lr, [{"network.channels": [8, 16]}]), {}, {}, {}).space
    assert found.sample(0, 1)["task.network.channels"] == (8, 16)


def test_a_choice_of_one_list_is_kept():
    domain = distributions.from_value(tune.choice([[16, 32]]), "k")
    assert distributions.bounds(distributions.parse_distribution(distributions.to_text(domain), "k")) == [(16, 32)]


def test_a_space_of_several_algorithms_is_narrowed_to_some_or_one():
    methods = read_space("methods")
    one = build_request(methods, {}, parse_pairs(["algorithm=fedprox"]), {})
    assert set(one.space.domains) == {"algorithm.lr", "algorithm.mu"}
    assert one.space.points == ({"algorithm.lr": 1e-3, "algorithm.mu": 0.01},)
    assert resolve(one.space.apply(one.base, one.space.sample(0, 1))).algorithm.mu == 0.01
    arguments = from_cli(["algorithm=choice(fedprox,ditto)", "algorithm.ditto.lam=uniform(1,2)"])
    two = build_request(methods.override(arguments), {}, {}, {}).space
    assert two.algorithm_names == ("fedprox", "ditto")
    assert not [key for key in two.domains if "fedsm" in key or "scaffold" in key]
    assert two.points[1] == {"algorithm": "ditto", "algorithm.ditto.lr": 1e-3}  # its lam is out of the new range


def test_keys_of_finetune_and_short_keys_are_searched():
    space = Space(from_cli(["algorithm.finetune.lr=loguniform(1e-4,1e-2)", "network.channels=choice([4,8],[8,16])"]))
    found = build_request(space, {"algorithm": "fcl"}, {}, {})
    values = found.space.sample(0, 1)
    config = resolve(found.space.apply(found.base, values))
    assert config.algorithm.finetune.lr == values["algorithm.finetune.lr"]
    fixed = build_request(space, {"algorithm": "fcl"}, parse_pairs(["task.network.channels=[4,8]"]), {})
    assert list(fixed.space.domains) == ["algorithm.finetune.lr"]


def test_a_grid_over_a_continuous_range_is_refused_and_over_steps_is_expanded():
    with pytest.raises(ConfigError, match="a grid needs single values"):
        Space(from_cli(["algorithm.lr=uniform(0.1,1)"])).grid()
    rows = Space(from_cli(["algorithm.momentum=quniform(0,0.6,0.3)", "algorithm.epochs=randint(1,4)"])).grid()
    assert len(rows) == 9
    assert rows[1] == {"algorithm.momentum": 0.0, "algorithm.epochs": 2}


@pytest.mark.parametrize("name", installed_spaces())
def test_a_shipped_space_fits_its_algorithm(name):
    space = read_space(name)
    assert space.fixed.get("algorithm", name) == name
    if name not in (*algorithms(), "methods"):
        pytest.skip(f"there is no algorithm {name} yet")
    assert space.points
    found = build_request(space, {}, {}, {})
    assert all(set(point) <= set(found.space.domains) for point in space.points)


def test_every_algorithm_has_a_space():
    root = ROOT
    assert {path.stem for path in (root / "algorithms").glob("*.py")} - {"__init__"} <= set(installed_spaces())


def test_the_command_lists_spaces(capsys):
    assert main(["list", "spaces"]) == 0
    assert "fedsm" in capsys.readouterr().out
    assert main(["list", "spaces", "fedsm"]) == 0
    assert "algorithm.pull" in capsys.readouterr().out
    assert main(["list", "spaces", "fedsn"]) == 2
    assert main(["tune", "fedavg", "fedprox"]) == 2
    assert main(["tune", "nothing.py"]) == 2


def test_numpy_numbers_become_python_numbers():
    space = from_mapping(
        {
            "algorithm.lr": tune.choice(list(np.logspace(-4, -2, 3))),
            "algorithm.epochs": {"grid_search": np.arange(1, 3)},
            "algorithm.momentum": tune.uniform(np.float64(0), np.float32(0.5)),
            "task.network.channels": tune.choice([np.array([4, 8])]),
            "rounds": np.int64(3),
        },
        [{"algorithm.lr": np.float64(1e-3)}],
    )
    assert distributions.to_text(space.domains["algorithm.lr"]) == "choice(0.0001, 0.001, 0.01)"
    assert distributions.to_text(space.domains["algorithm.epochs"]) == "grid(1, 2)"
    assert distributions.to_text(space.domains["algorithm.momentum"]) == "uniform(0.0, 0.5)"
    assert space.domains["task.network.channels"].categories == [(4, 8)]
    kept = [space.fixed["rounds"], space.points[0]["algorithm.lr"], *space.domains["algorithm.lr"].categories]
    assert [type(value) for value in kept] == [int, *[float] * 4]


def test_a_choice_that_cannot_be_parsed_again_is_refused():
    for value in ({"name": "unet"}, math.inf, 1j, [1, {2}], Path("x")):
        with pytest.raises(ConfigError, match=r"algorithm.lr: .* cannot be a value of a choice"):
            from_mapping({"algorithm.lr": tune.choice([0.1, value])})
    with pytest.raises(ConfigError, match="cannot be a value of a choice"):
        distributions.parse_distribution("choice(1, 1e999)", "k")


def test_lists_in_lists_are_the_same_from_python_text_and_json():
    given = tune.choice([[[1, 2], [3]], [4]])
    values = distributions.from_value(given, "k").categories
    assert values == [((1, 2), (3,)), (4,)]
    assert (
        distributions.bounds(
            distributions.parse_distribution(distributions.to_text(distributions.from_value(given, "k")), "k")
        )
        == values
    )
    assert [distributions.to_python_value(value) for value in json.loads(json.dumps(values))] == values


def test_a_key_in_its_short_and_its_long_form_is_refused():
    for short, long in (("cohort", "cohort.size"), ("network.norm", "task.network.norm")):
        with pytest.raises(ConfigError, match=f"{long} is given twice, also in its short form"):
            from_mapping({short: tune.choice([1, 2]), long: 1})
        with pytest.raises(ConfigError, match="given twice"):
            from_mapping({long: tune.choice([1, 2])}, [{long: 1, short: 2}])


def test_a_key_of_a_user_class_is_searched():
    arguments = [
        "algorithm=choice(fedavg,'tests.support.dying:Dying')",
        "algorithm.tests.support.dying:Dying.lr=choice(0.5)",
    ]
    space = build_request(Space(from_cli(arguments)), {}, {}, {}).space
    lr = {resolve(space.apply({}, row)).algorithm.lr for row in space.grid() if row["algorithm"] != "fedavg"}
    assert lr == {0.5}
    assert len(space.grid()) == 2
