"""Fault injection: valid and invalid texts of `chaos`."""

from __future__ import annotations

import pytest

from raysim.core.errors import ConfigError
from raysim.core.fault_injection import FaultPlan, parse_faults

NAMES = ("a", "b", "c", "d", "e", "f")


def test_chaos_is_read() -> None:
    chaos = parse_faults("kill client@3; kill node@5;kill client@5; slow site 02 x4; drop 0.1")
    assert chaos == FaultPlan({3: ("client",), 5: ("node", "client")}, {"site 02": 4.0}, 0.1)
    assert parse_faults(None) == parse_faults(" ; ") == FaultPlan()


@pytest.mark.parametrize("text", ["kill", "kill client", "kill server@2", "slow a", "slow a x", "drop 2", "drop", "x"])
def test_chaos_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"chaos: cannot read .*expected kill client@ROUND"):
        parse_faults(text)


def test_unknown_sites_and_rounds_are_refused() -> None:
    with pytest.raises(ConfigError, match="there is no site 'z'"):
        parse_faults("slow z x2").check(NAMES, 4)
    with pytest.raises(ConfigError, match="there is no round 5; expected 1 to 4"):
        parse_faults("kill client@5").check(NAMES, 4)
