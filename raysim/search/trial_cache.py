"""Keeps tasks with open data and client actors in a process, for the next trials."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from secrets import token_hex
from typing import Any

from raysim.config.introspection import to_plain
from raysim.config.schema import RunConfig
from raysim.core.contracts import Task
from raysim.core.events import Notice, RoundEvent, RunFinished
from raysim.distributed import node_probe
from raysim.federation.continuation import keep_initial_weights
from raysim.federation.plan import build_plan
from raysim.federation.runner import local_fleet, run_federation
from raysim.federation.site_data import SiteDataCache
from raysim.federation.validation import validate
from raysim.search.actor_session import ActorSession
from raysim.search.spec import SearchSpec
from raysim.storage.run_directory import LOG_FILE, has_checkpoint


class TrialCache:
    """The state of a process between trials: tasks with open data, and the client actors of large trials."""

    def __init__(self, spec: SearchSpec) -> None:
        self.tasks: dict[str, tuple[Task, SiteDataCache]] = {}  # the most recently used last
        self.max_tasks = len(spec.variants) + 1  # the tasks of one trial, and the task that the other trials share
        self.session_actors = ActorSession(token_hex(3))
        if spec.task is not None:
            self.tasks[_task_key(spec.task_config)] = (spec.task, SiteDataCache(spec.task))

    def run(self, config: RunConfig, directory: Path) -> Generator[RoundEvent | Notice | RunFinished]:
        """Run the federation of `config` in `directory`, from its last checkpoint."""
        task, data_cache = self._task(config)
        started = (directory / LOG_FILE).exists() or has_checkpoint(directory)
        plan = build_plan(config, directory, task=task, resume=started, versions=node_probe.versions())
        # best/ has the models; those of hundreds of trials would fill the disk.
        plan = replace(plan, writes_models_and_pictures=False)
        validate(plan)
        keep_initial_weights(task, directory)  # after the search, the source may be gone
        if config.backend == "ray":
            yield from self.session_actors.perform(plan)
        else:
            yield from run_federation(plan, local_fleet(plan, data_cache))

    def _task(self, config: RunConfig) -> tuple[Task, SiteDataCache]:
        key = _task_key(config.task)
        cached = self.tasks.pop(key, None)
        if cached is None:
            task = config.task.build(None)
            cached = (task, SiteDataCache(task))
        self.tasks[key] = cached
        while len(self.tasks) > self.max_tasks:
            self.tasks.pop(next(iter(self.tasks)))
        return cached


def _task_key(task_config: Any) -> str:
    return json.dumps([type(task_config).__qualname__, to_plain(task_config)], sort_keys=True, default=str)
