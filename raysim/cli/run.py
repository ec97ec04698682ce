"""`raysim run` and `raysim resume`: they call `raysim.run` and `raysim.resume` with the console as the callback."""

from __future__ import annotations

import argparse
import signal
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raysim.config.merge import merge, parse_pairs, read_file
from raysim.config.resolve import resolve, resolve_without_algorithm
from raysim.config.schema import RunConfig
from raysim.core.errors import ConfigError
from raysim.distributed import early_start
from raysim.distributed.local_ray import set_local_ray_variables
from raysim.storage.run_directory import SEEDS_FILE, check_new_directory, check_run_directory


def run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Run the federation that the arguments describe."""
    config = read_config(args, overrides, start_ray=True)
    if args.seeds is not None:
        from raysim.cli import seeds

        return seeds.run(config, args.seeds, args.out)
    from raysim.distributed import launcher
    from raysim.reporting.console import RunConsole
    from raysim.reporting.terminal import Terminal

    console = RunConsole(Terminal())
    with console.live():
        launcher.run(config, out=args.out, continue_from=args.continue_from, on_event=console.show)
    return 0


def resume(args: argparse.Namespace) -> int:
    """Continue a run after its last checkpoint, or the runs of several seeds."""
    if (Path(args.run) / SEEDS_FILE).is_file():
        from raysim.cli import seeds

        end_cleanly_on_sigterm()
        return seeds.resume(Path(args.run), args.address)
    from raysim.distributed import launcher
    from raysim.reporting.console import RunConsole
    from raysim.reporting.terminal import Terminal

    end_cleanly_on_sigterm()
    console = RunConsole(Terminal())
    with console.live():
        launcher.resume(Path(args.run), ray_address=args.address, on_event=console.show)
    return 0


def read_config(args: argparse.Namespace, overrides: Sequence[str], *, start_ray: bool = False) -> RunConfig:
    """The configuration from the config file and the overrides, which take precedence.

    Also prepares this process for the run. Errors in keys and table are found before torch is imported. With
    `start_ray`, a local Ray starts while torch is imported.
    """
    overrides = [*overrides, *([f"ray_address={args.address}"] if args.address else [])]
    overrides += ["anonymous_cases=true"] * getattr(args, "anonymous_cases", False)
    overrides += [f"tracker={args.tracker}"] if getattr(args, "tracker", None) else []
    if getattr(args, "seeds", None) is not None and args.seeds < 1:
        raise ConfigError(f"--seeds {args.seeds}: expected the number of seeds, 1 or more")
    if getattr(args, "seeds", None) is not None and args.continue_from is not None:
        raise ConfigError(f"--seeds {args.seeds}: --continue continues a single run; remove --seeds")
    values = merge(_read_base(args), parse_pairs(overrides))
    check_new_directory(args.out, "a run")
    checked = check_task(values)
    end_cleanly_on_sigterm()
    set_local_ray_variables(checked.ray_address)
    if start_ray and checked.backend == "ray":
        early_start.start_early(checked.ray_address)
    return resolve(values)


def _read_base(args: argparse.Namespace) -> dict[str, Any]:
    """The keys of the config file, or of the run that is continued."""
    run = getattr(args, "continue_from", None)
    if run is not None and args.config:
        raise ConfigError(f"--continue {run} uses the configuration of that run, so -c cannot be given; remove -c")
    if run is not None:
        check_run_directory(Path(run))
        return read_file(str(Path(run) / "config.yaml"))
    return read_file(args.config) if args.config else {}


def check_task(values: Mapping[str, Any]) -> RunConfig:
    """The configuration without its algorithm, whose module imports torch.

    Raises ConfigError for an error in the keys of the task or in its table, if the task has a check. The run reads the
    table again and reports its warnings, so they are ignored here.
    """
    config = resolve_without_algorithm(values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        getattr(config.task, "check", lambda: None)()
    return config


def end_cleanly_on_sigterm() -> None:
    """Handle SIGTERM like Ctrl-C: a batch system sends it when the time of a job is over."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
