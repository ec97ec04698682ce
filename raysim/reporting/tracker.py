"""Sends runs to an experiment tracker in a thread, so that a slow or absent server neither delays nor ends a run."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raysim.config.schema import TrackerName
from raysim.core.atomic_io import write_json
from raysim.core.formatting import join_names
from raysim.core.numeric import is_number
from raysim.reporting.pictures import FOLDER, picture_path
from raysim.reporting.tracked_runs import RunDescription, TrackedRun, one_line, open_run

STATE_FILE = "tracker.json"  # in a run directory: the id of the run in the tracker, and the last round that was sent
RETRY_S = 30.0  # seconds between a failed request and the next one
FILES = ("config.yaml", "summary.json", "report.html", "models", FOLDER)  # of a run directory


@dataclass
class _Run:
    """A run that is sent: the rounds that the tracker does not have, and the outcome of the run."""

    directory: Path
    description: RunDescription
    last: int = 0  # the last round that was added
    sent: int = 0  # the last round that the tracker has
    points: list[tuple[int, Mapping[str, float]]] = field(default_factory=list)
    status: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    files: Sequence[Path] = ()
    tracked: TrackedRun | None = None


class Tracker:
    """Sends the rounds, files and outcomes of runs. Rounds that the server did not accept are sent with later ones."""

    def __init__(self, name: TrackerName) -> None:
        self.name = name
        self._runs: dict[Path, _Run] = {}
        self._worker = ThreadPoolExecutor(1, "tracker")  # sends in the order of the calls
        self._notices: deque[str] = deque()
        self._retry_at = 0.0
        self._is_failing = False

    def start(self, directory: Path, description: RunDescription) -> int:
        """Begin the run in `directory`, or continue it. Returns the last round that the tracker has."""
        state = self._state(directory)
        sent = int(state.get("round", 0))
        run = _Run(directory, description, last=sent, sent=sent)
        self._runs[directory] = run
        self._worker.submit(self._send, run)
        return run.last

    def add(self, directory: Path, number: int, row: Mapping[str, Any]) -> None:
        """Add the metrics of a round. A round that the tracker already has is ignored."""
        run = self._runs[directory]
        if number > run.last:
            run.last = number
            metrics = {name: float(value) for name, value in row.items() if name != "round" and is_number(value)}
            self._worker.submit(self._add, run, (number, metrics))

    def end(self, directory: Path, status: str, tags: Mapping[str, str], files: Sequence[Path] = ()) -> None:
        """End the run as done, stopped, interrupted or failed, and send the files and folders that exist."""
        self._worker.submit(self._end, self._runs[directory], status, tags, files)

    def take_notices(self) -> list[str]:
        """The notices since the last call."""
        return [self._notices.popleft() for _ in range(len(self._notices))]

    def close(self) -> None:
        """Wait until everything is sent; makes a last attempt if the server has failed."""
        try:
            self._worker.submit(self._send_rest).result()
        except KeyboardInterrupt:
            self._notices.append(f"interrupted: {self.name} may not have all rounds and files")
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _state(self, directory: Path) -> Mapping[str, Any]:
        with suppress(OSError, ValueError):
            state: Mapping[str, Any] = json.loads((directory / STATE_FILE).read_text())
            if state["tracker"] == self.name:
                return state
        return {}

    # The methods below run in the thread.

    def _add(self, run: _Run, point: tuple[int, Mapping[str, float]]) -> None:
        run.points.append(point)
        self._send(run)

    def _end(self, run: _Run, status: str, tags: Mapping[str, str], files: Sequence[Path]) -> None:
        run.status, run.tags, run.files = status, tags, files
        self._send(run)

    def _send(self, run: _Run) -> None:
        """Send all data of the run that the tracker does not have. An error of the server becomes a notice."""
        if time.monotonic() < self._retry_at:
            return
        try:
            self._deliver(run)
        except Exception as error:  # noqa: BLE001 - the tracker must not end the run
            self._retry_at = time.monotonic() + RETRY_S
            if not self._is_failing:
                self._notices.append(f"{self.name} does not accept data; the run continues: {one_line(error)}")
            self._is_failing = True
        else:
            self._is_failing = False

    def _deliver(self, run: _Run) -> None:
        if run.tracked is None:
            run.tracked = open_run(self.name, run.description, self._state(run.directory).get("run"))
            self._save(run)
        if run.points:
            run.tracked.log(run.points)
            run.sent = run.points[-1][0]
            run.points.clear()
            self._save(run)
        if run.status:
            run.tracked.add_files(list(_files(run.files)), list(_pictures(run.files)))
            run.tracked.end(run.status, run.tags)
            del self._runs[run.directory]

    def _save(self, run: _Run) -> None:
        assert run.tracked is not None
        write_json(run.directory / STATE_FILE, {"tracker": self.name, "run": run.tracked.id, "round": run.sent})

    def _send_rest(self) -> None:
        for run in list(self._runs.values()):
            self._retry_at = 0.0
            self._send(run)
            if self._is_failing:
                break
        if self._runs:
            names = join_names(sorted(run.description.name for run in self._runs.values()))
            self._notices.append(
                f"{self.name} does not have all rounds and files of {names}; the run directory has them"
            )


def _files(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Yields each file with its name: the path from the folder that contains the given file or folder."""
    for path in paths:
        for found in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if found.is_file():
                yield found, str(found.relative_to(path.parent))


def _pictures(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Yields the path and the caption of each picture of cases, if a run's pictures are among the paths."""
    for folder in (path for path in paths if path.name == FOLDER):
        with suppress(OSError, ValueError, KeyError):
            for each in json.loads((folder / "pictures.json").read_text())["pictures"]:
                caption = f"{each['site']}, {each['rank']} case: {each['metric']} {each['value']:.4g}"
                yield picture_path(folder, each["file"]), caption
