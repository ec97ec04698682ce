"""Checks of a plan before any site trains."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from raysim import Model, Task, weights
from raysim.core.errors import ConfigError
from raysim.federation.validation import check_algorithm, check_last_batch
from raysim.tasks.synthetic import Synthetic, SyntheticData


def test_a_last_batch_of_one_example_is_refused_with_batch_norm():
    data = SyntheticData(sites=2, outside=(), cases=5, size=(16, 16))
    deep = {"name": "unet", "channels": [4, 8, 16, 32, 64], "norm": "batch"}
    with pytest.raises(ConfigError, match=r"batch_size=4: the last batch at 'site-01' \(5 training examples\)"):
        check_last_batch(Synthetic(data=data, network=deep, batch_size=4).build())
    check_last_batch(Synthetic(data=data, network=deep, batch_size=5).build())
    check_last_batch(Synthetic(data=data, batch_size=4).build())  # no batch statistics


@dataclass(frozen=True)
class StateWithExtra:
    model: Model
    extra: object


@dataclass(frozen=True)
class WithExtra:
    extra: object

    def init(self, task: Task) -> StateWithExtra:
        return StateWithExtra(weights(task.network()), self.extra)

    round = predictor = init


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (abs, "the builtin_function_or_method at 'extra'; use None, bool, int"),
        (torch.zeros(1, dtype=torch.bfloat16), "the bfloat16 tensor at 'extra'; convert it to float32"),
        (np.array([None]), "the array of Python objects at 'extra'; use a list"),
    ],
)
def test_a_first_state_that_no_checkpoint_can_store_is_refused(extra: object, message: str) -> None:
    task = Synthetic(data=SyntheticData(sites=2, outside=(), cases=4, size=(16, 16))).build()
    with pytest.raises(
        ConfigError, match=rf"the state that WithExtra\.init returned: a checkpoint cannot store {message}"
    ):
        check_algorithm(WithExtra(extra), task, 0, 1)
