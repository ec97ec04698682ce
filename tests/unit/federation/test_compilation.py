"""`algorithm.compile`: refusals, from how many rounds on a run is faster, and the same training as without it."""

from __future__ import annotations

from pathlib import Path

import pytest

from raysim.config.merge import parse_pairs
from raysim.config.resolve import resolve
from raysim.core.errors import ConfigError
from raysim.federation.compilation import check_compilation, describe_gain, measure_compilation
from raysim.federation.plan import Plan, build_plan
from raysim.federation.runner import federate_plan, local_fleet

TINY = [
    *("task.data.sites=2", "task.data.outside=[]", "task.data.cases=4", "task.data.val=1", "task.data.test=0"),
    *("task.data.size=[8, 8]", "task.network.channels=[2, 4]", "task.batch_size=2", "rounds=1"),
]


def plan(*arguments: str) -> Plan:
    return build_plan(resolve(parse_pairs([*TINY, *arguments])), Path("unused"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["algorithm=moon"], "moon has its own training loop, which is not compiled; set algorithm.compile=false$"),
        (["algorithm=fedsimclr"], "fedsimclr has its own training loop"),
        (["resources.batch_sites=2"], "resources.batch_sites=2 trains sites in one batch, .* set resources.batch_sit"),
    ],
)
def test_training_that_is_not_compiled_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_compilation(plan(*arguments, "algorithm.compile=true"))
    check_compilation(plan(*arguments))


def test_a_missing_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"'no-such-compiler' was not found; install g\+\+, set the environment"):
        check_compilation(plan("algorithm.compile=true"))


def test_with_compilation_sites_train_one_by_one_by_default() -> None:
    small = ["task.data.sites=8"]
    assert plan(*small).batch_sites == 2
    assert plan(*small, "algorithm.compile=true").batch_sites == 1


@pytest.mark.parametrize(
    ("seconds", "gain", "text"),
    # 30 s are saved after 15 rounds of 2 s.
    [
        (30, 2, "a run of 16 or more rounds is faster with it"),
        (30, 0.0, "a run is not faster with it"),
        (30, -1, "a run is not faster with it"),
    ],
)
def test_the_rounds_from_which_a_run_is_faster(seconds: float, gain: float, text: str) -> None:
    assert describe_gain(seconds, gain) == text


@pytest.mark.slow
def test_a_compiled_network_trains_as_without_compilation() -> None:
    compiled = plan("algorithm.compile=true")
    assert "algorithm.compile: a training step takes" in measure_compilation(compiled, 1)
    losses = [next(federate_plan(each, local_fleet(each))).loss for each in (compiled, plan())]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
