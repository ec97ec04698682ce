"""Checks of a plan before any site trains."""

from __future__ import annotations

import pytest

from raysim.core.errors import ConfigError
from raysim.federation.validation import check_last_batch
from raysim.tasks.synthetic import Synthetic, SyntheticData


def test_a_last_batch_of_one_example_is_refused_with_batch_norm():
    data = SyntheticData(sites=2, outside=(), cases=5, size=(16, 16))
    deep = {"name": "unet", "channels": [4, 8, 16, 32, 64], "norm": "batch"}
    with pytest.raises(ConfigError, match=r"batch_size=4: the last batch at 'site-01' \(5 training examples\)"):
        check_last_batch(Synthetic(data=data, network=deep, batch_size=4).build())
    check_last_batch(Synthetic(data=data, network=deep, batch_size=5).build())
    check_last_batch(Synthetic(data=data, batch_size=4).build())  # no batch statistics
