"""One trial: its federations, round by round, in a process that goes on to the next trial with its data open."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Generator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

import torch
import yaml
from ray.tune import Trainable

from raysim.config.introspection import to_plain
from raysim.config.resolve import to_mapping
from raysim.config.schema import RunConfig
from raysim.core.atomic_io import write_text
from raysim.core.contracts import Task
from raysim.core.errors import ConfigError, NodeError, RaysimError
from raysim.core.events import Notice, RoundEvent, RunFinished
from raysim.distributed import node_probe
from raysim.federation.plan import build_plan
from raysim.federation.runner import local_fleet, run_federation
from raysim.federation.site_executor import SiteDataCache
from raysim.federation.validation import validate
from raysim.search.actor_session import ActorSession
from raysim.search.objectives import combine_rows
from raysim.search.samplers import TRIAL_NUMBER
from raysim.search.spec import UNFIT_NODE, FederationVariant, SearchSpec
from raysim.search.state_transfer import complete_import, export_state, import_state
from raysim.search.trial_store import finished_record, logged_rounds, trial_directory
from raysim.storage import checkpoint

MAX_RETRIES = 1  # times that a round which has failed is tried again, from the last checkpoint
REPLAYING_SCHEDULERS = ("asha", "median", "hyperband")  # schedulers that judge a trial by all its rounds
CUMULATIVE = ("bytes", "spent")  # what adds up over rounds
Event = RoundEvent | Notice | RunFinished


class TrialCache:
    """What a process keeps from trial to trial: tasks with their data open, and the client actors of a large trial."""

    def __init__(self, search: SearchSpec) -> None:
        self.tasks: dict[str, tuple[Task, SiteDataCache]] = {}
        self.most = len(search.variants) + 1  # those of a trial, and the one that all others may have
        self.session_actors = ActorSession(token_hex(3))
        if search.task is not None:
            self.tasks[_key(search.task_config)] = (search.task, SiteDataCache(search.task))

    def events(self, config: RunConfig, folder: Path) -> Generator[Event]:
        """The run of `config` in `folder`, from where it stands."""
        task, data_cache = self._task(config)
        begun = [*folder.glob("log.jsonl"), *folder.glob("checkpoints/round_*")]
        # Resumed without a checkpoint, it starts from round 1.
        plan = build_plan(config, folder, task=task, resume=bool(begun), versions=node_probe.versions())
        validate(plan)
        if config.backend == "ray":
            yield from self.session_actors.perform(plan)
        else:
            yield from run_federation(plan, local_fleet(plan, data_cache))

    def _task(self, config: RunConfig) -> tuple[Task, SiteDataCache]:
        key = _key(config.task)
        held = self.tasks.pop(key, None)
        if held is None:
            task = config.task.build(None)
            held = (task, SiteDataCache(task))
        self.tasks[key] = held  # at the end: what was used longest ago goes first
        while len(self.tasks) > self.most:
            self.tasks.pop(next(iter(self.tasks)))
        return held


def _key(task: Any) -> str:
    return json.dumps([type(task).__qualname__, to_plain(task)], sort_keys=True, default=str)


class TrialRounds:
    """The rounds of a trial, joined over its federations; a trial that was begun before goes on where it stood."""

    def __init__(self, search: SearchSpec, number: int, values: Mapping[str, Any], workshop: TrialCache) -> None:
        self.search, self.number, self.values, self.cache = search, number, values, workshop
        self.folder = trial_directory(search.out, number)
        complete_import(self.folder, search.variants_of(values))
        self.ended = finished_record(self.folder)
        self.reported, self.failed, self.digests = self._told(), 0, dict[str, str]()
        self._rows: Generator[dict[str, Any]] | None = None

    def _told(self) -> int:
        """The round up to which Tune knows the trial; the rounds after it are reported from the log, then played."""
        mark = self.folder / "session"
        known, standing = mark.exists() and mark.read_text() == self.search.session, self._standing()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(mark, self.search.session)
        if known:
            return min(standing, self._last() - 1)  # the last one may not have been heard
        return 0 if self.search.scheduler in REPLAYING_SCHEDULERS else max(0, standing - 1)

    def _last(self) -> int:
        """The last of its rounds. Raises ConfigError where its values do not go together."""
        return self.search.config(self.values, self.search.variants[0]).rounds

    def _standing(self) -> int:
        """The last round that all its federations have a checkpoint of."""
        cells = self.search.variants_of(self.values)
        return min(_checkpointed(self.folder / name) for name in cells)

    def step(self) -> dict[str, Any]:
        """The next round's metrics. A failure that comes again after a retry ends the trial, and tells its cause."""
        while True:
            try:
                if self._rows is None:
                    self._rows = self._joined()
                row = next((row for row in self._rows if row["round"] > self.reported), None)
            except RaysimError as error:
                self.close()
                self.failed += 1
                if self.failed > MAX_RETRIES or isinstance(error, ConfigError | NodeError):
                    cause = f"{UNFIT_NODE}: {error}" if isinstance(error, NodeError) else str(error)
                    return {"round": self.reported, "failed": cause, "done": True}
            else:
                if row is None:  # an ended one has no more to tell
                    return {"round": self.reported, "done": True}
                self.reported, self.failed = row["round"], 0
                return row

    def close(self) -> None:
        """End what is under way; what was recorded is on the disk."""
        if self._rows is not None:
            self._rows.close()
            self._rows = None

    def _joined(self) -> Generator[dict[str, Any]]:
        cells, last = self.search.variants_of(self.values), self._last()
        parts: list[Generator[tuple[dict[str, Any], str | None]]] = [
            self._federation(name, cell) for name, cell in cells.items()
        ]
        try:
            for several in zip(*parts, strict=True):
                rows = [row for row, _ in several]
                found = [(cell.seed, row) for cell, row in zip(cells.values(), rows, strict=True)]
                row = combine_rows(found, self.search.better) | {"round": rows[0]["round"]}
                row |= {name: sum(each[name] for each in rows) for name in CUMULATIVE}  # by all its federations
                row["done"] = self.ended is not None and row["round"] == self.ended.rounds
                if row["round"] == last:
                    self.digests = {name: digest or "" for name, (_, digest) in zip(cells, several, strict=True)}
                    row |= {"done": True, "last": True, "digests": self.digests}
                yield row
        finally:
            for part in parts:
                part.close()

    def _federation(self, name: str, cell: FederationVariant) -> Generator[tuple[dict[str, Any], str | None]]:
        """Each round's row with what has added up so far, and with the last one the digest of the final state."""
        folder, config = self.folder / name, self.search.config(self.values, cell)
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        write_text(folder / "config.yaml", yaml.safe_dump(to_mapping(config), sort_keys=False))
        total = dict.fromkeys(CUMULATIVE, 0.0)
        with closing(self._rounds(config, folder)) as rounds:
            for row, digest in rounds:
                total["bytes"] += sum(row[way] for way in ("bytes_up", "bytes_down", "bytes_between"))
                total["spent"] += row["seconds"]
                yield {name: value for name, value in row.items() if value is not None} | total, digest

    def _rounds(self, config: RunConfig, folder: Path) -> Generator[tuple[Mapping[str, Any], str | None]]:
        """The rows of the log up to the last checkpoint, then those that are played; the last one with its digest."""
        logged, digest = list(logged_rounds(folder)), _digest(folder)
        if self.ended is not None and self.ended.status != "done":
            yield from ((row, None) for row in logged if row["round"] <= self.ended.rounds)
            return
        if digest is not None:
            yield from ((row, None) for row in logged[:-1])
            yield logged[-1], digest
            return
        standing = min(_checkpointed(folder), config.rounds - 1)
        yield from ((row, None) for row in logged if row["round"] <= standing)
        last: Mapping[str, Any] = logged[-1] if logged else {}
        with closing(self.cache.events(config, folder)) as events:
            for event in events:
                if isinstance(event, RunFinished):
                    digest = str(event.values["digest"])
                elif isinstance(event, RoundEvent):
                    last = event.values
                    if event.number < config.rounds:
                        yield last, None
        yield last, digest  # after its end, for a run that is closed before it counts as interrupted

    def adopt(self, given: Path) -> None:
        """Go on from what `given` holds of another trial: its federations' rounds, states and memories."""
        taken = import_state(given, self.number, self.folder, self.values, self.search.variants_of(self.values))
        self.reported = self.reported if taken is None else taken

    def hand_over(self, given: Path) -> None:
        """Put into `given` what another trial needs to go on from here, or, but for PBT, only where this one stands."""
        export_state(given, self.number, self.folder, self.reported, whole=self.search.scheduler == "pbt")


def _checkpointed(folder: Path) -> int:
    """The round of the newest checkpoint, 0 without one."""
    newest = next(checkpoint.newest_first(folder / "checkpoints"), None)
    return int(newest.name.rpartition("_")[2]) if newest else _finished(folder)


def _finished(folder: Path) -> int:
    return max((row["round"] for row in logged_rounds(folder)), default=0) if _digest(folder) else 0


def _digest(folder: Path) -> str | None:
    """Of the final state, where the run is done."""
    with suppress(OSError, ValueError):
        summary = json.loads((folder / "summary.json").read_text())
        return str(summary["digest"]) if summary["status"] == "done" else None
    return None


class FederationTrainable(Trainable):
    """Ray Tune's side of a trial: a step is a round."""

    def setup(self, config: dict[str, Any], search: SearchSpec | None = None) -> None:
        """Take up the first trial of this process."""
        assert search is not None
        for name in ("ray.tune", "ray.train"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        if os.path.isdir(search.cwd):
            os.chdir(search.cwd)  # so that paths mean what they mean to the command
            sys.path.insert(0, search.cwd)  # and a module of the user's own is found
        self.search, self.unfit = search, search.unfit()
        if self.unfit:
            return
        self.cache = TrialCache(search)
        group = self.trial_resources
        share = group.bundles[0].get("GPU", 0) if group is not None else 0
        if share and search.backend == "local" and torch.cuda.is_available():  # client actors see to it themselves
            torch.cuda.set_per_process_memory_fraction(min(share, 1.0))
        self._begin(config)

    def _begin(self, config: Mapping[str, Any]) -> None:
        values = {key: value for key, value in config.items() if key != TRIAL_NUMBER}
        # By its name: PBT copies the configuration of one trial into another, and the number with it.
        self.rounds = TrialRounds(self.search, int(self.trial_name), values, self.cache)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take up another trial, with what is open."""
        if not self.unfit:
            self.rounds.close()
            self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """One round."""
        return {"round": 0, "failed": self.unfit, "done": True} if self.unfit else self.rounds.step()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """What a scheduler that pauses trials, or has one take over another's state, asks for."""
        if not self.unfit:
            self.rounds.hand_over(Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Go on from there."""
        if not self.unfit:
            self.rounds.adopt(Path(checkpoint))

    def cleanup(self) -> None:
        """The trial is stopped, with its client actors."""
        if not self.unfit:
            self.rounds.close()
            self.cache.session_actors.close()
