"""`raysim run`, from a checked configuration to an exit code: prepare the data, start, show, and leave the files."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from secrets import token_hex

import yaml

from raysim.config.resolve import to_mapping
from raysim.config.schema import RunConfig
from raysim.core.atomic_io import write_json
from raysim.core.errors import ConfigError, PlacementError, RunError
from raysim.core.events import ActorsPlaced, Event, RunFailed, RunFinished
from raysim.core.registry import classes_of, name_of
from raysim.distributed import node_probe
from raysim.distributed.cluster_checks import check_cluster
from raysim.distributed.connection import connect
from raysim.distributed.control_actor import NAMESPACE
from raysim.distributed.driver import stream_events
from raysim.distributed.environment import describe_environment, pickle_by_value
from raysim.federation.plan import Plan, build_plan, parse_run_faults
from raysim.federation.runner import disk_errors_named, local_fleet, run_federation
from raysim.federation.validation import validate
from raysim.reporting.console import RunConsole
from raysim.reporting.html_report import write_report
from raysim.storage.run_directory import exclusive_lock, reserve_directory


def launch(config: RunConfig, out: str | None, display: RunConsole) -> None:
    """Run the federation of `config` into the new folder `out`, or into the next free one under `runs`.

    Raises RaysimError for whatever goes wrong, KeyboardInterrupt after a clean stop.
    """
    stem = f"{name_of(type(config.algorithm))}-{name_of(type(config.task))}"
    with reserve_directory(out, stem) as folder, exclusive_lock(folder):
        _start(prepare(config, folder, display), display)


def resume(folder: Path, config: RunConfig, display: RunConsole) -> None:
    """Go on with the run in `folder` after its last checkpoint, to the result that it would have had.

    Raises ConfigError if it is done or still running, and what `launch` raises.
    """
    with exclusive_lock(folder):
        _check_unfinished(folder)
        _start(prepare(config, folder, display, resume=True), display)


def prepare(config: RunConfig, directory: Path, display: RunConsole, resume: bool = False) -> Plan:
    """The plan of `config`, validated; the display shows the preparation of the data."""
    parse_run_faults(config)
    with display.preparing() as progress:
        plan = build_plan(config, directory, progress=progress, resume=resume, versions=node_probe.versions())
    validate(plan)
    return plan


def _check_unfinished(folder: Path) -> None:
    with suppress(OSError, ValueError):
        summary = json.loads((folder / "summary.json").read_text())
        if summary["status"] == "done":
            raise ConfigError(
                f"{folder} is done, all {summary['rounds']} rounds; for more rounds start a new run "
                f"(raysim run -c {folder / 'config.yaml'} rounds=...)"
            )


def _start(plan: Plan, display: RunConsole) -> None:
    try:
        _run(plan, display)
    except (RunError, PlacementError, KeyboardInterrupt) as error:
        if (plan.directory / "log.jsonl").exists() and "raysim resume" not in str(error):
            more = any((plan.directory / "checkpoints").glob("round_*"))
            goes_on = f"; raysim resume {plan.directory} goes on with it" if more else ""
            display.say(f"what was recorded until then is in {plan.directory}{goes_on}")
        raise
    finally:
        _report(plan.directory, display)


def _report(out: Path, display: RunConsole) -> None:
    """Leave report.html, whatever ended the run: by this process, for the server actor may be lost."""
    if not (out / "summary.json").exists():  # the run has not begun, or its server was lost
        return
    try:
        display.say(f"report: {write_report(out)}")
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the run has ended, and this changes nothing of it
        reason = " ".join(str(error).split())
        display.say(f"report.html was not written: {type(error).__name__}{f': {reason}' if reason else ''}")


def _run(plan: Plan, display: RunConsole) -> None:
    config = plan.config
    if config.backend == "local":
        _follow(_local(plan), plan, display)
        return
    pickle_by_value(*classes_of(config.algorithm), type(config.task))
    display.say("starting Ray")
    with connect(config.ray_address) as dashboard:
        display.say(f"Ray is up; dashboard: {dashboard or 'none'}")
        joined = bool(config.ray_address or os.environ.get("RAY_ADDRESS"))
        for note in check_cluster(plan.task, config.task) if joined else ():
            display.show(note)
        events = stream_events(plan, f"{NAMESPACE}{plan.directory.name}-{token_hex(3)}")
        _follow(events, plan, display)


def _local(plan: Plan) -> Generator[Event]:
    fleet = local_fleet(plan)
    yield ActorsPlaced([], dict.fromkeys(plan.sites, "local"))
    yield from run_federation(plan, fleet)


def _follow(events: Generator[Event], plan: Plan, display: RunConsole) -> None:
    """Show the events; the folder is filled when the actors are placed, so that what is refused leaves nothing."""
    # Closed, not left to the garbage collector: Ctrl-C may come here, and a run must end before Ray does.
    with display.live(plan), closing(events):
        for event in events:
            if isinstance(event, ActorsPlaced):
                with disk_errors_named(plan.directory):
                    _open_folder(plan.directory, plan.config, event)
            if isinstance(event, RunFailed):
                raise event.error
            display.show(event)
            if isinstance(event, RunFinished):
                display.finish(event, plan.directory)


def _open_folder(folder: Path, config: RunConfig, placed: ActorsPlaced) -> None:
    (folder / "checkpoints").mkdir(exist_ok=True)
    if not (folder / "config.yaml").exists():  # else the run goes on, and these tell how it began
        (folder / "config.yaml").write_text(yaml.safe_dump(to_mapping(config), sort_keys=False))
        write_json(folder / "env.json", describe_environment())
    places = {place.actor: asdict(place) for place in placed.places}
    sites = [
        {"site": site, **places.get(actor, {"actor": actor})} for site, actor in sorted(placed.site_to_actor.items())
    ]
    write_json(folder / "placement.json", sites)
