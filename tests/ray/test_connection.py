"""A process that uses a Ray already cannot join another one."""

from __future__ import annotations

import pytest

from raysim.core.errors import PlacementError
from raysim.distributed.connection import connect

pytestmark = pytest.mark.usefixtures("ray_started")


def test_a_second_ray_in_one_process_is_refused_with_the_cure() -> None:
    message = (
        r"cannot join Ray at 10\.0\.0\.1:6379: this process already uses the Ray at .*:\d+; remove ray_address to use"
    )
    with pytest.raises(PlacementError, match=message), connect("10.0.0.1:6379"):
        pass
    with connect(None):  # the cure
        pass
