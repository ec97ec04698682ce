"""`raysim tune`: its options, and the search that they describe. Imports torch and Ray only when the command runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from raysim.config.schema import TrackerName
from raysim.core.errors import ConfigError
from raysim.distributed.local_ray import set_local_ray_variables
from raysim.search.options import (
    RESUMABLE,
    CheckpointRetention,
    ComparedRound,
    FailedFederations,
    SamplerName,
    SchedulerName,
    SearchOptions,
    StopRule,
)
from raysim.storage.run_directory import check_new_directory

EXAMPLES = """\
SPACE is a Python file that ends with .py, or one of `raysim list spaces`:
  raysim tune fedsm -c examples/retina.yaml task.data.table=retina/table.csv --trials 32 --scheduler asha --metric worst
  raysim tune --space 'algorithm.lr=loguniform(1e-4,1e-1)' --space 'algorithm.epochs=choice(1,2,4)' rounds=10
  raysim tune --space 'algorithm=choice(fedprox,fedsm)' --space 'algorithm.fedsm.pull=uniform(0.5,1)' --searcher tpe
  raysim tune -c examples/wbc.yaml task.data.table=wbc/table.csv --holdout each
  raysim tune --resume runs/tune-001 --trials 100
A key=value argument gives a key a fixed value and removes it from the space.
"""
BUDGET_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def add_tune_command(commands: Any) -> None:
    """Add the parser of the command to the subparsers `commands`."""
    parser = commands.add_parser(
        "tune",
        help="run many trials over a search space",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
        usage="raysim tune [-h] [SPACE] [key=value ...] [options]",
    )
    add = parser.add_argument
    add("-c", "--config", metavar="FILE", help="a YAML file of keys, as for `raysim run`; the space takes precedence")
    add(
        "--space",
        metavar="KEY=DIST",
        action="append",
        default=[],
        help="add a key to the space: --space 'algorithm.lr=loguniform(1e-4, 1e-1)'",
    )
    add("--trials", type=int, metavar="N", help="number of trials (default: 16; a grid determines it)")
    add(
        "--metric",
        metavar="M",
        help="the objective: mean, worst, outside, bytes, seconds or role/split/metric; separate several by commas",
    )
    _add_search_options(add)
    add("--max-concurrent", type=int, metavar="N", help="concurrent trials (default: as many as fit)")
    add("--seeds", type=int, metavar="N", help="seeds of each trial; the objective is their mean (default: 1)")
    add("--holdout", metavar="SITE", help="a site that is evaluated and does not train; 'each' takes every site once")
    add("--folds", type=int, metavar="N", help="cross-validate each trial on N folds; the objective is their mean")
    add(
        "--budget",
        metavar="TIME",
        help="time after the start of the first trial: 90s, 30m or 2h",
    )
    add(
        "--keep-checkpoints",
        choices=get_args(CheckpointRetention),
        help="the trials whose last checkpoints are kept (default: best)",
    )
    add("--tracker", choices=get_args(TrackerName), help="an experiment tracker that also records the trials")
    add("--out", metavar="DIR", help="the search directory, which must not exist (default: a new one in runs/)")
    add("--address", metavar="ADDRESS", help="the Ray cluster to join; the same as ray_address=ADDRESS")
    add("--resume", metavar="DIR", help="resume this search; --trials adds trials")
    add("--dry-run", action="store_true", help="show the trials, their resources and the estimated time")


def _add_search_options(add: Callable[..., Any]) -> None:
    """Add the options of the sampler, the scheduler and the comparison of the trials."""
    add("--judge", choices=get_args(ComparedRound), help="the round of a trial that is compared (default: best)")
    add(
        "--scheduler",
        choices=get_args(SchedulerName),
        help="the scheduler that stops trials early (default: fifo, which stops none)",
    )
    add("--searcher", choices=get_args(SamplerName), help="the sampler that draws the trials (default: random)")
    add("--from", dest="warm_start", metavar="DIR", help="learn from the trials of this search over the same space")
    add("--stop", choices=get_args(StopRule), help="auto: start no new trial when the best value no longer improves")
    add(
        "--failed-federations",
        choices=get_args(FailedFederations),
        help="if a seed, held-out site or fold fails: fail its trial (default), or compare the other ones",
    )


def tune(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Run the command and return the exit code. `arguments` are the name of a space and key=value overrides."""
    from raysim.config.merge import parse_pairs, read_file

    check_new_directory(args.out, "a search")
    pairs = [argument for argument in arguments if "=" in argument]
    overrides = parse_pairs([*pairs, *([f"ray_address={args.address}"] if args.address else [])])
    file_keys = read_file(args.config) if args.config else {}
    set_local_ray_variables(overrides.get("ray_address", _base(args, file_keys).get("ray_address")))
    names = [argument for argument in arguments if "=" not in argument]
    if args.resume is not None:
        _resume(args, names, overrides)
    else:
        _start(args, names, file_keys, overrides)
    return 0


def _base(args: argparse.Namespace, file_keys: Mapping[str, Any]) -> Mapping[str, Any]:
    """The base configuration: that of the search to resume, or the keys of the config file."""
    from raysim.config.merge import read_file

    request = Path(args.resume, "search.yaml") if args.resume is not None else None
    if request is None or not request.is_file():
        return file_keys
    base = read_file(str(request)).get("base")
    return base if isinstance(base, Mapping) else {}  # `_resume` refuses a damaged file


def _start(
    args: argparse.Namespace, names: Sequence[str], file_keys: Mapping[str, Any], overrides: Mapping[str, Any]
) -> None:
    _check_space(args, names, file_keys, overrides)
    from raysim.reporting.search_console import SearchConsole
    from raysim.reporting.terminal import Terminal
    from raysim.search import api
    from raysim.search.request import build_request
    from raysim.search.space import Space, from_cli
    from raysim.search.space_files import read_space

    space = (read_space(names[0]) if names else Space()).override(from_cli(args.space))
    request = build_request(space, file_keys, overrides, search_options(args))
    console = SearchConsole(Terminal())
    if args.dry_run:
        api.dry_run(request, args.out, console)
    else:
        api.start_search(request, args.out, console)


def _check_space(
    args: argparse.Namespace, names: Sequence[str], file_keys: Mapping[str, Any], overrides: Mapping[str, Any]
) -> None:
    """Raises ConfigError for errors that are found before torch and Ray are imported."""
    from raysim.search.distribution_text import parse_arguments
    from raysim.search.early_checks import check_arguments_of_named_space, check_space_arguments
    from raysim.search.space_files import space_file

    if len(names) > 1:
        raise ConfigError(
            f"two spaces are given, {names[0]!r} and {names[1]!r}: give one, and add keys to it with --space"
        )
    parsed = parse_arguments(args.space)
    if names:
        check_arguments_of_named_space(space_file(names[0]), parsed, file_keys, overrides)
    else:
        check_space_arguments(parsed, file_keys, overrides)


def _resume(args: argparse.Namespace, names: Sequence[str], overrides: Mapping[str, Any]) -> None:
    from raysim.reporting.search_console import SearchConsole
    from raysim.reporting.terminal import Terminal
    from raysim.search import api

    changed = args.space or args.out or args.config or args.dry_run or names or overrides.keys() - {"ray_address"}
    if changed:
        raise ConfigError(
            f"--resume continues the search with its space and keys; only these may change: --address, {RESUMABLE}"
        )
    options, console = search_options(args), SearchConsole(Terminal())
    api.resume_search(Path(args.resume).absolute(), options, console, overrides.get("ray_address"))


def search_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of SearchOptions that were given. Raises ConfigError for a budget that is not a time."""
    options = {field.name: getattr(args, field.name) for field in fields(SearchOptions)}
    if args.budget is not None:
        options["budget"] = _seconds(args.budget)
    return {name: value for name, value in options.items() if value is not None}


def _seconds(text: str) -> float:
    number, unit = (text[:-1], text[-1:]) if text[-1:] in BUDGET_UNITS else (text, "s")
    try:
        return float(number) * BUDGET_UNITS[unit]
    except ValueError:
        raise ConfigError(f"--budget {text}: expected a time such as 90s, 30m or 2h") from None
