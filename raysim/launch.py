"""`raysim run`, from a checked configuration to an exit code: prepare the data, start, show, and leave the files."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Generator
from contextlib import closing, suppress
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from secrets import token_hex
from typing import Any

import ray
import torch
import yaml

from raysim import __version__, node
from raysim.census import agreed
from raysim.chaos import Chaos, read
from raysim.checks import data_paths
from raysim.config import RunConfig, plain
from raysim.display import Display
from raysim.driver import stream
from raysim.errors import ConfigError, PlacementError, RunError
from raysim.fleet import LocalFleet
from raysim.folder import alone, claimed
from raysim.join import ray_running
from raysim.preflight import check_disk, model_bytes
from raysim.registry import classes_of, name_of
from raysim.report import write_report
from raysim.run import (
    Plan,
    Summary,
    check_algorithm,
    check_cohort,
    check_last_batch,
    check_sites,
    check_training,
    chosen_metric,
    perform,
    writing,
)
from raysim.server import Event, Failed, Placed
from raysim.stand import NAMESPACE
from raysim.types import Task
from raysim.whole import write_json
from raysim.worker import Opened, threads_of

PACKAGES = ("ray", "torch", "monai", "numpy", "pandas", "pyarrow", "nibabel", "pillow", "scipy", "pydantic")


def launch(config: RunConfig, out: str | None, display: Display) -> None:
    """Run the federation of `config` into the new folder `out`, or into the next free one under `runs`.

    Raises RaysimError for whatever goes wrong, KeyboardInterrupt after a clean stop.
    """
    stem = f"{name_of(type(config.algorithm))}-{name_of(type(config.task))}"
    with claimed(out, stem) as folder, alone(folder):
        _start(prepare(config, folder, display), config, display)


def resume(folder: Path, config: RunConfig, display: Display) -> None:
    """Go on with the run in `folder` after its last checkpoint, to the result that it would have had.

    Raises ConfigError if it is done or still running, and what `launch` raises.
    """
    with alone(folder):
        _check_unfinished(folder)
        _start(replace(prepare(config, folder, display), resume=True), config, display)


def _check_unfinished(folder: Path) -> None:
    with suppress(OSError, ValueError):
        summary = json.loads((folder / "summary.json").read_text())
        if summary["status"] == "done":
            raise ConfigError(
                f"{folder} is done, all {summary['rounds']} rounds; for more rounds start a new run "
                f"(raysim run -c {folder / 'config.yaml'} rounds=...)"
            )


def _start(plan: Plan, config: RunConfig, display: Display) -> None:
    try:
        _run(plan, config, display)
    except (RunError, PlacementError, KeyboardInterrupt) as error:
        if (plan.out / "log.jsonl").exists() and "raysim resume" not in str(error):
            more = any((plan.out / "checkpoints").glob("round_*"))
            goes_on = f"; raysim resume {plan.out} goes on with it" if more else ""
            display.say(f"what was recorded until then is in {plan.out}{goes_on}")
        raise
    finally:
        _report(plan.out, display)


def _report(out: Path, display: Display) -> None:
    """Leave report.html, whatever ended the run: by this process, for the server actor may be lost."""
    if not (out / "summary.json").exists():  # the run has not begun, or its server was lost
        return
    try:
        display.say(f"report: {write_report(out)}")
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the run has ended, and this changes nothing of it
        reason = " ".join(str(error).split())
        display.say(f"report.html was not written: {type(error).__name__}{f': {reason}' if reason else ''}")


def _run(plan: Plan, config: RunConfig, display: Display) -> None:
    if config.fleet == "local":
        _follow(_local(plan, config), config, plan, display)
        return
    by_value(*classes_of(config.algorithm), type(config.task))
    display.say("starting Ray")
    with ray_running(config.address) as dashboard:
        display.say(f"Ray is up; dashboard: {dashboard or 'none'}")
        joined = bool(config.address or os.environ.get("RAY_ADDRESS"))
        for note in agreed(plan.task, config.task) if joined else ():
            display.show(note)
        events = stream(plan, config.resources, f"{NAMESPACE}{plan.out.name}-{token_hex(3)}")
        _follow(events, config, plan, display)


def prepare(config: RunConfig, folder: Path, display: Display) -> Plan:
    """Open the data and check all that can be checked before anything starts."""
    _chaos(config)
    with display.preparing() as progress:
        task = config.task.build(progress)
    return planned(config, task, folder)


def _chaos(config: RunConfig) -> Chaos:
    chaos = read(config.chaos)
    if chaos.kills and config.fleet == "local":
        raise ConfigError(f"chaos={config.chaos!r}: fleet=local has no actor or node to kill; run on Ray")
    return chaos


def planned(config: RunConfig, task: Task, folder: Path) -> Plan:
    """The run of `config` on its `task`, which is built, into `folder`. Raises ConfigError for what cannot be."""
    chaos = _chaos(config)
    chaos.check((*task.inside, *task.outside), config.rounds)
    if chaos.drop and config.min_replies == 1.0:
        raise ConfigError(
            f"chaos drops replies, and min_replies={config.min_replies} has every site answer: the first would end the "
            "run; give min_replies=0.5, say"
        )
    check_training(task)
    check_last_batch(task)
    check_algorithm(config.algorithm, task, config.seed, config.rounds)
    check_cohort(task, config.cohort.size)
    check_sites(task, config.resources.sites)
    model = model_bytes(task)
    if not any((folder / "checkpoints").glob("round_*")):  # else the room is taken already
        check_disk(folder, model)
    return Plan(
        algorithm=config.algorithm,
        algorithm_name=name_of(type(config.algorithm)),
        task=task,
        out=folder,
        rounds=config.rounds,
        cohort=config.cohort.size,
        model_bytes=model,
        dropout=config.cohort.dropout,
        seed=config.seed,
        evaluate_every=config.evaluate_every,
        checkpoint_every=config.checkpoint_every,
        metric=chosen_metric(task, config.metric),
        min_replies=config.min_replies,
        site_timeout=config.site_timeout,
        chaos=chaos,
        versions=node.versions(),
        reads=data_paths(task, config.task)[0],
    )


def by_value(*classes: type) -> None:
    """The user's own module travels with the run: other processes and machines may not be able to import it."""
    for cls in classes:
        if cls.__module__.partition(".")[0] not in ("raysim", "algorithms"):
            ray.cloudpickle.register_pickle_by_value(sys.modules[cls.__module__])


def _local(plan: Plan, config: RunConfig) -> Generator[Event]:
    fleet = local_fleet(plan, config)
    yield Placed([], dict.fromkeys((*plan.task.inside, *plan.task.outside), "local"))
    yield from perform(plan, fleet)


def local_fleet(plan: Plan, config: RunConfig, opened: Opened | None = None) -> LocalFleet:
    """All sites in this process. `opened` are the data that it has open already."""
    resources = config.resources
    gpus = max(resources.of(site)[1] for site in (*plan.task.inside, *plan.task.outside))
    device = "cuda" if gpus else "cpu"
    if gpus and not torch.cuda.is_available():
        raise PlacementError(
            f"resources: {gpus:g} GPU is asked for, but torch finds no GPU on this machine; leave it at 0"
        )
    return LocalFleet(
        plan.task,
        seed=plan.seed,
        rounds=plan.rounds,
        device=device,
        threads=threads_of(resources.cpus_per_client),
        own_threads={site: threads_of(resources.of(site)[0]) for site in resources.sites},
        chaos=plan.chaos,
        opened=opened,
    )


def _follow(events: Generator[Event], config: RunConfig, plan: Plan, display: Display) -> None:
    """Show the events; the folder is filled when the actors are placed, so that what is refused leaves nothing."""
    # Closed, not left to the garbage collector: Ctrl-C may come here, and a run must end before Ray does.
    with display.live(plan), closing(events):
        for event in events:
            if isinstance(event, Placed):
                with writing(plan.out):
                    _open_folder(plan.out, config, event)
            if isinstance(event, Failed):
                raise event.error
            display.show(event)
            if isinstance(event, Summary):
                display.finish(event, plan.out)


def _open_folder(folder: Path, config: RunConfig, placed: Placed) -> None:
    (folder / "checkpoints").mkdir(exist_ok=True)
    if not (folder / "config.yaml").exists():  # else the run goes on, and these tell how it began
        (folder / "config.yaml").write_text(yaml.safe_dump(plain(config), sort_keys=False))
        write_json(folder / "env.json", environment())
    places = {place.actor: asdict(place) for place in placed.places}
    sites = [{"site": site, **places.get(actor, {"actor": actor})} for site, actor in sorted(placed.home.items())]
    write_json(folder / "placement.json", sites)


def environment() -> dict[str, Any]:
    """Versions, hardware and the command: what env.json holds. No environment variable is recorded."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    cuda = torch.cuda.is_available()
    return {
        "raysim": __version__,
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": found,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
        "ray": ray.cluster_resources() if ray.is_initialized() else None,
    }
