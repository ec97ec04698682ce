"""`raysim run --seeds N`: the same run with several seeds, one after another, then the table of `raysim compare`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from raysim.config.resolve import resolve, to_mapping
from raysim.config.schema import RunConfig
from raysim.config.yaml_loader import load_yaml
from raysim.core.atomic_io import write_text
from raysim.core.errors import ConfigError, PlacementError, RunError
from raysim.core.events import ActorsPlaced, Event, EventCallback
from raysim.core.formatting import quote_path
from raysim.core.results import RunOutcome
from raysim.distributed import launcher
from raysim.reporting.comparison import CompareOptions, compare
from raysim.reporting.comparison_tables import print_comparison
from raysim.reporting.console import RunConsole
from raysim.reporting.terminal import Terminal
from raysim.storage.run_directory import CONFIG_FILE, SEEDS_FILE, read_summary, reading_runs, reserve_directory


def run(config: RunConfig, count: int, out: str | None) -> int:
    """Run the seeds config.seed, config.seed + 1, ... in DIR/seed-N of a new directory; returns the exit code."""
    seeds = range(config.seed, config.seed + count)
    with reserve_directory(out, launcher.directory_stem(config)) as directory:
        return _run_all(directory, seeds, config)


def resume(directory: Path, ray_address: str | None) -> int:
    """Continue the unfinished seeds in `directory`, and run the missing ones; returns the exit code."""
    file = directory / SEEDS_FILE
    with reading_runs([directory]):
        content = load_yaml(file.read_text(encoding="utf-8"), str(file))
        seeds, config = [int(seed) for seed in content["seeds"]], resolve(content["config"])
    return _run_all(directory, seeds, replace(config, ray_address=ray_address or config.ray_address))


def _run_all(directory: Path, seeds: Sequence[int], config: RunConfig) -> int:
    console = RunConsole(Terminal())
    for number, seed in enumerate(seeds, 1):
        folder = directory / f"seed-{seed}"
        if read_summary(folder).get("status") == RunOutcome.DONE:
            continue
        console.say(f"seed {seed}, {number} of {len(seeds)}")
        try:
            _run_seed(folder, replace(config, seed=seed), lambda: _write_seeds(directory, seeds, config))
        except (RunError, PlacementError, KeyboardInterrupt):
            if (directory / SEEDS_FILE).exists():
                console.say(f"to continue with all seeds: raysim resume {quote_path(directory)}")
            raise
    try:
        print_comparison(compare([directory], CompareOptions()), console.console)
    except ConfigError as error:  # such as for a task without values by case
        console.say(f"no table of the seeds: {error}")
    console.say(f"to compare with other runs: raysim compare {quote_path(directory)} RUN ...")
    return 0


def _run_seed(folder: Path, config: RunConfig, on_start: Callable[[], None]) -> None:
    """Run or resume one seed. `on_start` is called when its run directory has been written."""
    console = RunConsole(Terminal())
    on_event = _call_on_start(on_start, console.show)
    with console.live():
        if (folder / CONFIG_FILE).is_file():
            launcher.resume(folder, ray_address=config.ray_address, on_event=on_event)
        else:
            launcher.run(config, out=folder, on_event=on_event)


def _call_on_start(on_start: Callable[[], None], show: EventCallback) -> EventCallback:
    """A callback that passes events to `show`, and calls `on_start` when the actors are placed."""

    def on_event(event: Event) -> None:
        if isinstance(event, ActorsPlaced):
            on_start()
        show(event)

    return on_event


def _write_seeds(directory: Path, seeds: Sequence[int], config: RunConfig) -> None:
    """Write seeds.yaml, if it does not exist."""
    if not (directory / SEEDS_FILE).exists():
        content: dict[str, Any] = {"seeds": list(seeds), "config": to_mapping(config)}
        write_text(directory / SEEDS_FILE, yaml.safe_dump(content, sort_keys=False))
