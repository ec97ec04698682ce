"""The suggestion of `backend=local`: by counted passes and the time of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from raysim.config.merge import parse_pairs
from raysim.config.resolve import resolve
from raysim.federation.plan import Plan, build_plan
from raysim.federation.work_estimate import forward_passes, local_backend_hint

DATA = ["task.data.sites=3", "task.data.outside=[]", "task.data.cases=12", "task.data.val=1", "task.data.test=1"]
TINY = [*DATA, "task.data.size=[8, 8]", "task.network.channels=[2, 4]", "task.batch_size=4"]


def plan(*arguments: str) -> Plan:
    return build_plan(resolve(parse_pairs([*TINY, *arguments])), Path("unused"))


def test_passes_of_training_and_evaluation_are_counted() -> None:
    # 3 sites train on 10 cases: 3 batches of 4 examples, 3 passes each. Evaluated are 2 cases per site.
    assert forward_passes(plan("rounds=4")) == 4 * (3 * 3 * 12 + 6)
    assert forward_passes(plan("rounds=4", "algorithm.epochs=2", "evaluate_every=2")) == 4 * 2 * 3 * 3 * 12 + 2 * 6
    assert forward_passes(plan("rounds=4", "cohort=1", "algorithm.steps=5")) == 4 * (3 * 5 * 4 + 6)


@pytest.mark.parametrize(
    ("arguments", "suggested"),
    [
        (["rounds=1"], True),
        (["rounds=1000000"], False),
        (["rounds=1", "resources.client_actors=2"], False),
        (["rounds=1", "resources.gpus_per_client=1"], False),
        (["rounds=1", "chaos=kill client@1"], False),
    ],
)
def test_backend_local_is_suggested_for_a_short_run_that_does_not_need_ray(
    arguments: list[str], suggested: bool
) -> None:
    assert ("backend=local" in local_backend_hint(plan(*arguments))) == suggested
