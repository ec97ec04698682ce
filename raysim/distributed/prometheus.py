"""Metrics of runs and searches for Prometheus: each node's metrics port exports the names below, after `ray_`."""

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
from raysim.distributed.timeouts import MEMORY_GAUGE_INTERVAL_S

# Description, and the labels in addition to `run` (for raysim_trials, in addition to `search`).
GAUGES = {
    "raysim_round": ("the last round that has ended", ()),
    "raysim_rounds": ("rounds of the run", ()),
    "raysim_round_seconds": ("seconds of the last round", ()),
    "raysim_phase_seconds": ("seconds of the last round, by phase", ("phase",)),
    "raysim_sites_done": ("sites that have replied in the current call", ()),
    "raysim_sites_called": ("sites of the current call", ()),
    "raysim_loss": ("training loss of the last round, weighted mean over the cohort", ()),
    "raysim_score": ("the chosen metric at the last evaluation: mean, weighted, worst", ("metric", "of")),
    "raysim_site_loss": ("training loss of a site", ("site",)),
    "raysim_site_score": ("the chosen metric of a site at the last evaluation", ("metric", "role", "site")),
    "raysim_client_memory_bytes": ("memory of a client actor: of its process, of torch on its GPU", ("actor", "where")),
}
COUNTERS = {
    "raysim_bytes": ("bytes that would cross the network: up, down, between sites", ("way",)),
    "raysim_failures": ("failures, by the action that was taken", ("action",)),
}
MAX_SITES = 1000  # sites up to which each site has curves: Prometheus stores a series for each curve
FLUSH_FACTOR = 500  # setting the values of sites takes at most 1/500 of the time


class RunMetrics:
    """The metrics of one run, set by the process that runs its rounds."""

    def __init__(self, run: str, rounds: int, chosen: str) -> None:
        self.run = {"run": run}
        self.role, self.metric = chosen.split("/", 1)  # role/split/metric
        self.rounds, self._next_flush = rounds, 0.0
        self._losses, self._scores = dict[str, float](), dict[tuple[str, str], float]()

    def add_round(self, round: Round[Any], row: Mapping[str, Any]) -> None:
        """Set the metrics of a round that has ended; `row` is its row in rounds.parquet."""
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
        self._keep_site_values(round)
        if time.monotonic() > self._next_flush:
            self.flush()

    def _count(self, round: Round[Any], row: Mapping[str, Any]) -> None:
        for way in ("up", "down", "between"):
            if count := row[f"bytes_{way}"]:
                _counter("raysim_bytes").inc(count, {**self.run, "way": way})
        self.count_failures(failure.action for failure in round.failures)

    def count_failures(self, actions: Iterable[FailureAction]) -> None:
        """Count failures by the action that was taken."""
        for action in actions:
            _counter("raysim_failures").inc(1, {**self.run, "action": action})

    def set_progress(self, done: int, total: int) -> None:
        """Set the number of sites that have replied in the current call."""
        _gauge("raysim_sites_done").set(done, self.run)
        _gauge("raysim_sites_called").set(total, self.run)

    def _keep_site_values(self, round: Round[Any]) -> None:
        split, _, metric = self.metric.partition("/")
        for score in round.scores:
            if (score.split, score.metric) == ("train", "loss"):
                self._losses[score.site] = score.value
            elif (score.split, score.metric) == (split, metric):
                self._scores[score.role, score.site] = score.value

    def flush(self) -> None:
        """Set the values of sites that have changed."""
        start = time.monotonic()
        if max(len(self._losses), len(self._scores)) <= MAX_SITES:
            for site, value in self._losses.items():
                _gauge("raysim_site_loss").set(value, {**self.run, "site": site})
            for (role, site), value in self._scores.items():
                tags = {**self.run, "metric": self.metric, "role": role, "site": site}
                _gauge("raysim_site_score").set(value, tags)
        self._losses, self._scores = {}, {}
        now = time.monotonic()
        self._next_flush = now + FLUSH_FACTOR * (now - start)


class MemoryGauge:
    """The memory of this process, a client actor."""

    def __init__(self, actor: str, gpu: bool) -> None:
        name = str(ray.get_runtime_context().get_actor_name())  # its namespace would be that of the command
        self.tags = {"run": name.partition("/")[0], "actor": actor}
        self.gpu, self._next_update = gpu, 0.0
        self.process: Any = import_module("psutil").Process()

    def update(self) -> None:
        """Set the metric, unless that was done within the last interval."""
        if time.monotonic() < self._next_update:
            return
        self._next_update = time.monotonic() + MEMORY_GAUGE_INTERVAL_S
        _gauge("raysim_client_memory_bytes").set(self.process.memory_info().rss, {**self.tags, "where": "host"})
        if self.gpu:
            _gauge("raysim_client_memory_bytes").set(torch.cuda.max_memory_reserved(), {**self.tags, "where": "gpu"})


def report_trials(search: str, counts: Mapping[str, int]) -> None:
    """Set the number of trials of a search with each status."""
    for status, count in counts.items():
        _trials().set(count, {"search": search, "status": status})


@cache
def _gauge(name: str) -> Any:
    description, tags = GAUGES[name]
    return Gauge(name, description, ("run", *tags))


@cache
def _counter(name: str) -> Any:
    description, tags = COUNTERS[name]
    return Counter(name, description, ("run", *tags))


@cache
def _trials() -> Any:
    return Gauge("raysim_trials", "trials of a search, by status", ("search", "status"))
