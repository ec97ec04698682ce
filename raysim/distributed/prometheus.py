"""What runs and searches tell Prometheus by way of Ray: `ray_` and the names below, at each node's metrics port."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module
from typing import Any

import ray
import torch
from ray.util.metrics import Counter, Gauge

from raysim.core.results import FailureAction, Round

# What each says, and its labels beside the run's (of raysim_trials: the search's).
GAUGES = {
    "raysim_round": ("the last round that has ended", ()),
    "raysim_rounds": ("rounds of the run", ()),
    "raysim_round_seconds": ("seconds of the last round", ()),
    "raysim_phase_seconds": ("seconds of the last round, by what they went into", ("phase",)),
    "raysim_sites_done": ("sites that have answered the call under way", ()),
    "raysim_sites_asked": ("sites that the call under way asks", ()),
    "raysim_loss": ("training loss of the last round, weighted mean over the cohort", ()),
    "raysim_score": ("the chosen metric when last judged: mean, weighted, worst", ("metric", "of")),
    "raysim_site_loss": ("training loss of a site", ("site",)),
    "raysim_site_score": ("the chosen metric of a site when last judged", ("metric", "role", "site")),
    "raysim_client_memory_bytes": ("memory of a client actor: of its process, of torch on its GPU", ("actor", "where")),
}
COUNTERS = {
    "raysim_bytes": ("bytes that would cross the network: up, down, between sites", ("way",)),
    "raysim_failures": ("failures, by the action that was taken", ("action",)),
}
SITES = 1000  # of more, none has curves of its own: each is a series that Prometheus keeps
CALM = 500  # sites' values are set so seldom that it takes a five hundredth of the time at most
EVERY = 2.0  # seconds between two looks at an actor's memory


class RunMetrics:
    """Tells of one run, from the process that runs its rounds."""

    def __init__(self, run: str, rounds: int, chosen: str) -> None:
        self.run = {"run": run}
        self.role, self.metric = chosen.split("/", 1)  # role, split/metric
        self.rounds, self._due = rounds, 0.0
        self._losses, self._scores = dict[str, float](), dict[tuple[str, str], float]()

    def add(self, round: Round[Any], row: Mapping[str, Any]) -> None:
        """Tell of a round that has ended, and of its row in rounds.parquet."""
        _gauge("raysim_rounds").set(self.rounds, self.run)
        _gauge("raysim_round").set(round.number, self.run)
        _gauge("raysim_round_seconds").set(round.seconds, self.run)
        if round.loss is not None:
            _gauge("raysim_loss").set(round.loss, self.run)
        for phase, seconds in round.phases.items():
            _gauge("raysim_phase_seconds").set(seconds, {**self.run, "phase": phase})
        self._count(round, row)
        for of in ("mean", "weighted", "worst"):
            if (value := row.get(f"{self.role}/{self.metric}/{of}")) is not None:
                _gauge("raysim_score").set(value, {**self.run, "metric": self.metric, "of": of})
        self._keep(round)
        if time.monotonic() > self._due:
            self.flush()

    def _count(self, round: Round[Any], row: Mapping[str, Any]) -> None:
        for way in ("up", "down", "between"):
            if count := row[f"bytes_{way}"]:
                _counter("raysim_bytes").inc(count, {**self.run, "way": way})
        self.failed(incident.action for incident in round.failures)

    def failed(self, actions: Iterable[FailureAction]) -> None:
        """Count failures by the action that was taken."""
        for action in actions:
            _counter("raysim_failures").inc(1, {**self.run, "action": action})

    def at(self, done: int, asked: int) -> None:
        """How far the call under way is."""
        _gauge("raysim_sites_done").set(done, self.run)
        _gauge("raysim_sites_asked").set(asked, self.run)

    def _keep(self, round: Round[Any]) -> None:
        split, _, metric = self.metric.partition("/")
        for score in round.scores:
            if (score.split, score.metric) == ("train", "loss"):
                self._losses[score.site] = score.value
            elif (score.split, score.metric) == (split, metric):
                self._scores[score.role, score.site] = score.value

    def flush(self) -> None:
        """Tell what has changed at sites."""
        start = time.monotonic()
        if max(len(self._losses), len(self._scores)) <= SITES:
            for site, value in self._losses.items():
                _gauge("raysim_site_loss").set(value, {**self.run, "site": site})
            for (role, site), value in self._scores.items():
                tags = {**self.run, "metric": self.metric, "role": role, "site": site}
                _gauge("raysim_site_score").set(value, tags)
        self._losses, self._scores = {}, {}
        now = time.monotonic()
        self._due = now + CALM * (now - start)


class MemoryGauge:
    """Tells the memory of the client actor that this process is, every other second."""

    def __init__(self, actor: str, gpu: bool) -> None:
        name = str(ray.get_runtime_context().get_actor_name())  # the namespace it tells is that of the command
        self.tags = {"run": name.partition("/")[0], "actor": actor}
        self.gpu, self._due = gpu, 0.0
        self.process: Any = import_module("psutil").Process()

    def tell(self) -> None:
        """If it is time for it."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + EVERY
        _gauge("raysim_client_memory_bytes").set(self.process.memory_info().rss, {**self.tags, "where": "host"})
        if self.gpu:
            _gauge("raysim_client_memory_bytes").set(torch.cuda.max_memory_reserved(), {**self.tags, "where": "gpu"})


def report_trials(search: str, counts: Mapping[str, int]) -> None:
    """Tell how many trials of a search there are of each status."""
    for status, count in counts.items():
        _trials().set(count, {"search": search, "status": status})


@cache
def _gauge(name: str) -> Any:
    said, tags = GAUGES[name]
    return Gauge(name, said, ("run", *tags))


@cache
def _counter(name: str) -> Any:
    said, tags = COUNTERS[name]
    return Counter(name, said, ("run", *tags))


@cache
def _trials() -> Any:
    return Gauge("raysim_trials", "trials of a search, by status", ("search", "status"))
