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


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0 done, 1 failed, 2 wrong usage, 3 cannot be placed, 130 interrupted."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and (args.command not in ("run", "doctor") or any(word.startswith("-") for word in rest)):
        wrong = next((word for word in rest if word.startswith("-")), rest[0])
        print(f"raysim: unknown argument {wrong!r}; see raysim {args.command or ''} --help", file=sys.stderr)
        return 2
    if args.command is None:
        parser.print_help()
        return 0
    try:
        commands = {"run": _run, "resume": _resume, "list": _list, "data": _data, "doctor": _doctor}
        commands |= {"status": _status, "stop": _stop, "submit": _submit}
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
    run.add_argument("--address", metavar="ADDRESS", help="short for address=ADDRESS: the Ray cluster to join")

    again = commands.add_parser("resume", help="go on with a run that was interrupted or has failed")
    again.add_argument("run", metavar="RUN_DIR", help="the run's folder; it goes on after its last checkpoint")

    look = commands.add_parser("doctor", help="look at Ray, nodes and data, try one batch, propose resources")
    look.usage = "raysim doctor [-h] [-c FILE] [--out DIR] [key=value ...]"
    look.add_argument("-c", "--config", metavar="FILE", help="as of run: a YAML file of keys")
    look.add_argument("--out", metavar="DIR", help="as of run: the folder that it would write")
    look.add_argument("--address", metavar="ADDRESS", help="as of run")

    _cluster_commands(commands)

    names = commands.add_parser("list", help="what there is: algorithms, tasks, networks")
    names.add_argument("what", choices=("algorithms", "tasks", "networks"))
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


def _cluster_commands(commands: Any) -> None:
    state = commands.add_parser("status", help="the runs and searches that are alive, and how far they are")
    state.add_argument("run", nargs="?", metavar="RUN", help="only this one: a name that it shows, or a run's folder")
    end = commands.add_parser("stop", help="end a run cleanly: what was recorded is kept, and raysim resume goes on")
    end.add_argument("run", nargs="?", metavar="RUN", help="a name that raysim status shows, or a run's folder")
    end.add_argument("--all", action="store_true", help="all runs and searches of that Ray")
    job = commands.add_parser("submit", help="a command as a job of a Ray cluster, which goes on without this terminal")
    job.usage = "raysim submit [-h] [--address URL] [--detach] [--attach JOB | COMMAND ...]"
    job.add_argument("--detach", action="store_true", help="start it, and do not wait")
    job.add_argument("--attach", metavar="JOB", help="follow a job that is there, and fetch its results")
    job.add_argument("--address", metavar="URL", help="the cluster's dashboard (default: http://127.0.0.1:8265)")
    job.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="COMMAND ...", help="run, tune, doctor, ... with its words"
    )
    for command in (state, end):
        command.add_argument("--address", help="the Ray to look at: HOST:PORT, or auto; default: RAY_ADDRESS")


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


def _doctor(args: argparse.Namespace, words: Sequence[str]) -> int:
    config = _configured(args, words)
    from raysim.display import Display, Terminal
    from raysim.doctor import doctor

    return doctor(config, args.out, Display(Terminal()))


def _configured(args: argparse.Namespace, words: Sequence[str]) -> RunConfig:
    """What a file and words ask for, and all that must be so before Ray is imported."""
    from raysim.config import merge, parse, read_file, resolve

    words = [*words, *([f"address={args.address}"] if args.address else [])]
    given = merge(read_file(args.config) if args.config else {}, parse(words))
    if args.out is not None and "://" in args.out:
        raise ConfigError(
            f"--out {args.out}: a run writes into a folder; give one that is mounted, and copy it afterwards"
        )
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
    if config.address is None and not os.environ.get("RAY_ADDRESS"):
        # A Ray of one's own serves this machine only. Ray reads this when it is imported; its name tells of where
        # it was needed first, but it keeps every port on loopback anywhere.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        # Workers take the allocator that Ray brings along for its own processes: a tenth of a small step is malloc.
        os.environ.setdefault("RAY_LD_PRELOAD_ON_WORKERS", "1")


def _status(args: argparse.Namespace, _: Sequence[str]) -> int:
    from rich.console import Console

    from raysim import watch

    watch.status(args.run, args.address, Console())
    return 0


def _stop(args: argparse.Namespace, _: Sequence[str]) -> int:
    from rich.console import Console

    from raysim import watch

    if (args.run is None) != args.all:
        raise ConfigError("raysim stop needs a RUN (raysim status shows them), or --all")
    watch.stop(args.run, args.address, Console())
    return 0


def _submit(args: argparse.Namespace, _: Sequence[str]) -> int:
    from rich.console import Console

    from raysim import submit

    if args.attach:
        return submit.attach(args.attach, args.address, Console())
    if args.words[:1] == ["run"]:
        _checked(args.words[1:])
    return submit.submit(args.words, args.address, args.detach, Console())


def _checked(words: Sequence[str]) -> None:
    """Raises ConfigError for what a run would refuse over there; the data are there alone."""
    from raysim.config import merge, parse, read_file, resolve

    args, rest = _parser().parse_known_args(["run", *words])
    resolve(merge(read_file(args.config) if args.config else {}, parse(rest)))


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
