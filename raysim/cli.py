"""The command line. Help must come at once, so torch and Ray are imported only by the commands that need them."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysim._version import __version__
from raysim.errors import ConfigError, RaysimError

if TYPE_CHECKING:
    from raysim.config import RunConfig

GRAMMAR = """\
keys are dotted, and the same in a file and on the command line:
  raysim run                                     the synthetic default
  raysim run rounds=20 algorithm=fedprox algorithm.mu=0.1
  raysim run -c examples/retina.yaml task.data.table=retina/table.csv seed=1 --out runs/first
`raysim list algorithms NAME` and `raysim list tasks NAME` show the keys under algorithm. and task.
"""


OPTIONS = ("trials", "metric", "scheduler", "searcher", "max_concurrent", "seeds", "holdout", "keep", "track")
TUNE = """\
SPACE is a file of yours that ends with .py, or one of `raysim list spaces`:
  raysim tune fedsm -c examples/retina.yaml task.data.table=retina/table.csv --trials 32 --scheduler asha --metric worst
  raysim tune --space algorithm.lr=loguniform(1e-4,1e-1) --space algorithm.epochs=choice(1,2,4) rounds=10
  raysim tune --space algorithm=choice(fedprox,fedsm) --space algorithm.fedsm.pull=uniform(0.5,1) --searcher optuna
  raysim tune -c examples/wbc.yaml task.data.table=wbc/table.csv --holdout each
  raysim tune --resume runs/tune-001 --trials 100
A word that fixes a key takes it out of the space.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0 done, 1 failed, 2 wrong usage, 3 cannot be placed, 130 interrupted."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and (args.command not in ("run", "tune", "doctor") or any(word.startswith("-") for word in rest)):
        wrong = next((word for word in rest if word.startswith("-")), rest[0])
        print(f"raysim: unknown argument {wrong!r}; see raysim {args.command or ''} --help", file=sys.stderr)
        return 2
    if args.command is None:
        parser.print_help()
        return 0
    try:
        commands = {"run": _run, "tune": _tune, "resume": _resume, "list": _list, "data": _data, "doctor": _doctor}
        return commands[args.command](args, rest)
    except RaysimError as error:
        if error.remote:
            print(error.remote, file=sys.stderr)
        print(f"raysim: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("raysim: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("raysim", description="Federated medical imaging on Ray: simulate and search.")
    parser.add_argument("--version", action="version", version=f"raysim {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    run = commands.add_parser("run", help="run one federation", formatter_class=raw, epilog=_keys())
    run.usage = "raysim run [-h] [-c FILE] [--out DIR] [key=value ...]"
    run.add_argument("-c", "--config", metavar="FILE", help="a YAML file of keys; key=value words win over it")
    run.add_argument(
        "--out", metavar="DIR", help="the run's folder, which must not exist (default: a new one in runs/)"
    )

    again = commands.add_parser("resume", help="go on with a run that was interrupted or has failed")
    again.add_argument("run", metavar="RUN_DIR", help="the run's folder; it goes on after its last checkpoint")

    _add_tune(commands)
    look = commands.add_parser("doctor", help="look at Ray, nodes and data, try one batch, propose resources")
    look.usage = "raysim doctor [-h] [-c FILE] [--out DIR] [key=value ...]"
    look.add_argument("-c", "--config", metavar="FILE", help="as of run: a YAML file of keys")
    look.add_argument("--out", metavar="DIR", help="as of run: the folder that it would write")

    names = commands.add_parser("list", help="what there is: algorithms, tasks, networks, spaces")
    names.add_argument("what", choices=("algorithms", "tasks", "networks", "spaces"))
    names.add_argument("name", nargs="?", help="show this one with its fields")

    data = commands.add_parser("data", help="write or look at a table of data").add_subparsers(
        dest="data_command", metavar="COMMAND", required=True
    )
    scan = data.add_parser("scan", help="write the table of a folder of images")
    scan.add_argument("folder")
    scan.add_argument("--out", metavar="FILE", help="the table to write (default: FOLDER/table.csv)")
    scan.add_argument(
        "--fractions", metavar="A,B,C", default="0.7,0.1,0.2", help="train, val, test (default: %(default)s)"
    )
    scan.add_argument("--seed", type=int, default=0, help="seed of the split (default: %(default)s)")
    scan.add_argument("--group", metavar="REGEX", help="what in a file's name tells the patient: the first group of it")
    describe = data.add_parser("describe", help="sites, splits, sizes, intensities, labels, problems")
    describe.add_argument("table")
    describe.add_argument("--root", help="the folder that paths are relative to (default: the table's)")
    return parser


def _add_tune(commands: Any) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    tune = commands.add_parser("tune", help="search over federations", formatter_class=raw, epilog=TUNE)
    tune.usage = "raysim tune [-h] [SPACE] [key=value ...] [options]"
    tune.add_argument("-c", "--config", metavar="FILE", help="a YAML file of keys, as of run; the space wins over it")
    tune.add_argument(
        "--space",
        metavar="KEY=DIST",
        action="append",
        default=[],
        help="search this key too: algorithm.lr=loguniform(1e-4, 1e-1)",
    )
    tune.add_argument(
        "--trials", type=int, metavar="N", help="how many trials (default: 16; a grid has its own number)"
    )
    tune.add_argument(
        "--metric", metavar="M", help="mean, worst, outside, bytes, seconds or role/split/metric; several with commas"
    )
    tune.add_argument("--scheduler", choices=("fifo", "asha", "hyperband", "pbt", "median"), help="(default: fifo)")
    tune.add_argument("--searcher", choices=("random", "grid", "optuna"), help="(default: random)")
    tune.add_argument("--max-concurrent", type=int, metavar="N", help="trials at once (default: as many as fit)")
    tune.add_argument("--seeds", type=int, metavar="N", help="seeds of each trial, judged by their mean (default: 1)")
    tune.add_argument("--holdout", metavar="SITE", help="a site not to train on, or each in turn; judged there")
    tune.add_argument("--budget", metavar="TIME", help="when to end, as 90s, 30m or 2h")
    tune.add_argument("--keep", choices=("best", "all"), help="whose checkpoints stay (default: best)")
    tune.add_argument("--track", choices=("mlflow", "wandb"), help="tell these too")
    tune.add_argument(
        "--out", metavar="DIR", help="the search's folder, which must not exist (default: a new one in runs/)"
    )
    tune.add_argument("--resume", metavar="DIR", help="go on with this search; --trials makes it longer")
    tune.add_argument("--dry-run", action="store_true", help="show the trials, what they need and how long that takes")


def _keys() -> str:
    from raysim.config import RunConfig
    from raysim.fields import documented

    rows = [row for row in documented(RunConfig) if row.name not in ("task", "algorithm")]
    lines = [f"  {row.name:<28} {row.doc} (default: {row.default})" for row in rows]
    return GRAMMAR + "\nkeys of a run:\n" + "\n".join(lines)


def _run(args: argparse.Namespace, words: Sequence[str]) -> int:
    config = _configured(args, words)
    from raysim.display import Display, Terminal
    from raysim.launch import launch

    launch(config, args.out, Display(Terminal()))
    return 0


def _tune(args: argparse.Namespace, words: Sequence[str]) -> int:
    if args.out is not None and Path(args.out).exists():
        raise ConfigError(f"--out {args.out} exists already, and a search never overwrites another; choose a new one")
    _local_ray(None)
    from raysim import asking, searching
    from raysim.config import merge, parse, read_file
    from raysim.display import Terminal
    from raysim.search_display import SearchDisplay
    from raysim.space import Space, of_words, read_space

    options = {name: value for name in OPTIONS if (value := getattr(args, name)) is not None}
    if args.budget is not None:
        options["budget"] = _seconds(args.budget)
    show = SearchDisplay(Terminal())
    if args.resume is not None:
        if words or args.space or args.out or args.config:
            raise ConfigError(
                "--resume goes on with the search as it is; only --trials, --budget and the like may change"
            )
        searching.swept(searching.resume(Path(args.resume).absolute(), options, show))
        return 0
    names = [word for word in words if "=" not in word]
    if len(names) > 1:
        raise ConfigError(f"two spaces, {names[0]!r} and {names[1]!r}: name one, and add keys to it with --space")
    found = read_space(names[0]) if names else Space()
    found = Space({**found.domains, **of_words(args.space)}, found.fixed, found.points)
    given = merge(read_file(args.config) if args.config else {}, {})
    asked = asking.asked(found, given, parse(word for word in words if "=" in word), options)
    _local_ray(asked.base.get("address"))
    searching.swept(searching.tune(asked, args.out, show, dry=args.dry_run))
    return 0


def _seconds(text: str) -> float:
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    number, unit = (text[:-1], text[-1:]) if text[-1:] in units else (text, "s")
    try:
        return float(number) * units[unit]
    except ValueError:
        raise ConfigError(f"--budget {text}: expected a time such as 90s, 30m or 2h") from None


def _doctor(args: argparse.Namespace, words: Sequence[str]) -> int:
    config = _configured(args, words)
    from raysim.display import Display, Terminal
    from raysim.doctor import doctor

    return doctor(config, args.out, Display(Terminal()))


def _configured(args: argparse.Namespace, words: Sequence[str]) -> RunConfig:
    """What a file and words ask for, and all that must be so before Ray is imported."""
    from raysim.config import merge, parse, read_file, resolve

    given = merge(read_file(args.config) if args.config else {}, parse(words))
    if args.out is not None and Path(args.out).exists():
        raise ConfigError(f"--out {args.out} exists already, and a run never overwrites another; choose a new one")
    config = resolve(given)
    _ready(config)
    return config


def _resume(args: argparse.Namespace, _: Sequence[str]) -> int:
    from raysim.config import read_file, resolve

    folder = Path(args.run).absolute()
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{args.run} is no run's folder: it holds no config.yaml; see what is in runs/")
    config = resolve(read_file(str(folder / "config.yaml")))
    _ready(config)
    from raysim.display import Display, Terminal
    from raysim.launch import resume

    resume(folder, config, Display(Terminal()))
    return 0


def _ready(config: RunConfig) -> None:
    """What must be so before Ray is imported."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system's end is as clean as Ctrl-C
    _local_ray(config.address)


def _local_ray(address: str | None) -> None:
    """Settings of a Ray of one's own, which it reads when it is imported."""
    if address is None and not os.environ.get("RAY_ADDRESS"):
        # A Ray of one's own serves this machine only. Ray reads this when it is imported; its name tells of where
        # it was needed first, but it keeps every port on loopback anywhere.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        # Workers take the allocator that Ray brings along for its own processes: a tenth of a small step is malloc.
        os.environ.setdefault("RAY_LD_PRELOAD_ON_WORKERS", "1")


def _list(args: argparse.Namespace, _: Sequence[str]) -> int:
    from rich.console import Console

    from raysim import listing

    console = Console()
    if args.name is None:
        listing.names(args.what, console)
    else:
        listing.one(args.what, args.name, console)
    return 0


def _data(args: argparse.Namespace, _: Sequence[str]) -> int:
    from rich.console import Console

    from raysim.data import commands

    console = Console()
    if args.data_command == "scan":
        commands.scan(args.folder, args.out, args.fractions, args.seed, args.group, console)
    else:
        commands.describe(args.table, args.root, console)
    return 0
