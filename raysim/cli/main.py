"""The entry point of `raysim`. Only the commands that need torch and Ray import them, so that `--help` is fast."""

from __future__ import annotations

import argparse
import atexit
import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from raysim.cli.completion import KEY_COMMANDS, complete
from raysim.cli.parser import make_parser
from raysim.config.key_hints import option_hint
from raysim.core.errors import ConfigError, RaysimError
from raysim.core.formatting import printable, redact
from raysim.distributed import early_start

# At its end, Python would search all objects of torch and Ray for garbage, which takes a second.
atexit.register(gc.freeze)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0 done, 1 failed, 2 wrong usage, 3 cannot be placed, 130 interrupted."""
    parser = make_parser()
    complete(parser)
    args, rest = parser.parse_known_args(argv)
    takes_keys = args.command in KEY_COMMANDS or getattr(args, "data_command", None) == "describe"
    if rest and (not takes_keys or any(each.startswith("-") for each in rest)):
        wrong = next((each for each in rest if each.startswith("-")), rest[0])
        hint = option_hint(rest) if wrong.startswith("--") and takes_keys else ""
        print(f"raysim: unknown argument {wrong!r}{hint}; see raysim {args.command or ''} --help", file=sys.stderr)
        return 2
    if args.command is None:
        parser.print_help()
        return 0
    code = _run_command(args, rest)
    early_start.exit_if_unused(code)
    return code


def _run_command(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Run the command of `args`; prints its error. Returns the exit code."""
    try:
        commands = {"run": _run, "tune": _tune, "resume": _resume, "list": _list, "data": _data, "doctor": _doctor}
        commands |= {"predict": _predict, "evaluate": _evaluate, "export": _export, "compare": _compare, "runs": _runs}
        commands |= {"status": _status, "stop": _stop, "submit": _submit, "schema": _schema, "report": _report}
        return commands[args.command](args, rest)
    except RaysimError as error:
        if error.remote:
            print(printable(redact(error.remote)), file=sys.stderr)
        print(printable(redact(f"raysim: {error}")), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("raysim: interrupted", file=sys.stderr)
        return 130


def _run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    from raysim.cli import run

    return run.run(args, overrides)


def _tune(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    from raysim.cli import tune

    return tune.tune(args, arguments)


def _doctor(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    from raysim.cli.run import read_config

    config = read_config(args, overrides)
    from raysim.cli.doctor import doctor
    from raysim.reporting.console import RunConsole
    from raysim.reporting.terminal import Terminal

    return doctor(config, args.out, RunConsole(Terminal()))


def _resume(args: argparse.Namespace, _: Sequence[str]) -> int:
    from raysim.cli import run

    return run.resume(args)


def _predict(args: argparse.Namespace, _: Sequence[str]) -> int:
    from raysim.cli import predict

    return predict.predict(args)


def _evaluate(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    from raysim.cli import evaluate

    return evaluate.evaluate(args, overrides)


def _export(args: argparse.Namespace, _: Sequence[str]) -> int:
    from raysim.cli import export

    return export.export(args)


def _status(args: argparse.Namespace, _: Sequence[str]) -> int:
    from raysim.cli import status
    from raysim.reporting.terminal import Terminal

    status.status(args.run, args.address, Terminal())
    return 0


def _stop(args: argparse.Namespace, _: Sequence[str]) -> int:
    from raysim.cli import status
    from raysim.reporting.terminal import Terminal

    if (args.run is None) != args.all:
        raise ConfigError("raysim stop needs a RUN (raysim status lists the active runs), or --all")
    status.stop(args.run, args.address, Terminal())
    return 0


def _report(args: argparse.Namespace, _: Sequence[str]) -> int:
    from raysim.cli.report import report

    report([Path(run) for run in args.runs], args.out and Path(args.out))
    return 0


def _submit(args: argparse.Namespace, _: Sequence[str]) -> int:
    from raysim.distributed.node_probe import token_file

    if os.environ.get("RAY_AUTH_TOKEN") or token_file(os.environ, Path.home()).is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray's job client sends the token only in this mode
    from raysim.cli import submit
    from raysim.reporting.terminal import Terminal

    if args.attach:
        return submit.attach(args.attach, args.address, Terminal())
    if args.arguments[:1] == ["run"]:
        _check_run_arguments(args.arguments[1:])
    return submit.submit(args.arguments, args.address, args.detach, Terminal())


def _check_run_arguments(arguments: Sequence[str]) -> None:
    """Raises ConfigError for a wrong key or value, before the job is sent. Only the cluster can check the data."""
    from raysim.config.merge import merge, parse_pairs, read_file
    from raysim.config.resolve import resolve

    args, rest = make_parser().parse_known_args(["run", *arguments])
    resolve(merge(read_file(args.config) if args.config else {}, parse_pairs(rest)))


def _compare(args: argparse.Namespace, _: Sequence[str]) -> int:
    from raysim.cli import compare

    return compare.compare(args)


def _runs(args: argparse.Namespace, _: Sequence[str]) -> int:
    from raysim.cli import runs
    from raysim.reporting.terminal import Terminal

    runs.print_runs(args.folder, Terminal())
    return 0


def _list(args: argparse.Namespace, _: Sequence[str]) -> int:
    from raysim.cli import list
    from raysim.reporting.terminal import Terminal

    console = Terminal()
    if args.what is None:
        list.print_kinds(console)
    elif args.name is None:
        list.print_names(args.what, console)
    else:
        list.print_details(args.what, args.name, console)
    return 0


def _schema(args: argparse.Namespace, _: Sequence[str]) -> int:
    import json

    from raysim.config.json_schema import run_schema

    print(json.dumps(run_schema(args.task, args.algorithm), indent=2))
    return 0


def _data(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    from raysim.cli import data
    from raysim.reporting.terminal import Terminal

    console = Terminal()
    if args.data_command == "scan":
        data.scan(args.folders, args.out, args.fractions, args.seed, args.group, console)
    elif args.data_command == "make":
        data.make(args.name, args.source, args.out, args.fractions, args.seed, console)
    else:
        data.describe(args.table, args.root, args.config, overrides, console)
    return 0
