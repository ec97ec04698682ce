"""Fault injection (`chaos`): actors and nodes are killed, sites are slowed down, replies are dropped."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from raysim.core.errors import ConfigError
from raysim.core.seeding import numpy_generator

GRAMMAR = "kill client@ROUND, kill node@ROUND, slow SITE xFACTOR, drop FRACTION; separated by ';'"


class Victim(StrEnum):
    """The kind of process that is killed."""

    CLIENT = "client"  # a client actor
    NODE = "node"


@dataclass(frozen=True)
class FaultPlan:
    """The faults to inject: `kills` has the victims by round (from 1), `slow` the factor on the time of each site."""

    kills: Mapping[int, tuple[Victim, ...]] = field(default_factory=dict)
    slow: Mapping[str, float] = field(default_factory=dict)
    drop: float = 0.0

    @property
    def needs_node(self) -> bool:
        """Whether a node will be killed."""
        return any(Victim.NODE in victims for victims in self.kills.values())

    def delay(self, site: str, seconds: float) -> float:
        """The extra seconds of a call at `site` that took `seconds`."""
        return (self.slow.get(site, 1.0) - 1.0) * seconds

    def drops(self, seed: int, round: int, index: int | str, site: str) -> bool:
        """Whether the reply of `site` to call `index` of a round is dropped.

        The result depends only on the arguments, so it is the same in every retry. Replies to an evaluation, which has
        a text as its index, are never dropped.
        """
        if self.drop == 0 or isinstance(index, str):
            return False
        return bool(numpy_generator(seed, round, index, "drop", site).random() < self.drop)

    def check(self, sites: tuple[str, ...], rounds: int) -> None:
        """Raises ConfigError for a site or a round that the run does not have."""
        for site in self.slow:
            if site not in sites:
                raise ConfigError(f"chaos: there is no site {site!r}; expected one of {', '.join(sites[:8])}")
        for number in self.kills:
            if not 1 <= number <= rounds:
                raise ConfigError(f"chaos: there is no round {number}; expected 1 to {rounds}")


def parse_faults(text: str | None) -> FaultPlan:
    """The faults described by `text`. Raises ConfigError for a part that cannot be parsed."""
    kills: dict[int, tuple[Victim, ...]] = {}
    slow, drop = dict[str, float](), 0.0
    for part in (part.strip() for part in (text or "").split(";")):
        if kill := re.fullmatch(r"kill (client|node)@(\d+)", part):
            number = int(kill[2])
            kills[number] = (*kills.get(number, ()), Victim(kill[1]))
        elif slower := re.fullmatch(r"slow (\S.*) x(\d+(?:\.\d+)?)", part):
            slow[slower[1]] = max(1.0, float(slower[2]))
        elif dropped := re.fullmatch(r"drop (0?\.\d+|0|1)", part):
            drop = float(dropped[1])
        elif part:
            raise ConfigError(f"chaos: cannot read {part!r}; expected {GRAMMAR}")
    return FaultPlan(kills, slow, drop)
