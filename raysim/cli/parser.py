"""What the command line takes: its commands, their options and the help that each gives."""

from __future__ import annotations

import argparse
from typing import Any

from raysim._version import __version__
from raysim.cli.tune import add_tune_command

GRAMMAR = """\
keys are dotted, and the same in a file and on the command line:
  raysim run                                     the synthetic default
  raysim run rounds=20 algorithm=fedprox algorithm.mu=0.1
  raysim run -c examples/retina.yaml task.data.table=retina/table.csv seed=1 --out runs/first
`raysim list algorithms NAME` and `raysim list tasks NAME` show the keys under algorithm. and task.
"""


def make_parser() -> argparse.ArgumentParser:
    """Of every command."""
    raw = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser("raysim", description="Federated medical imaging on Ray: simulate and search.")
    made.add_argument("--version", action="version", version=f"raysim {__version__}")
    commands = made.add_subparsers(dest="command", metavar="COMMAND")

    run = commands.add_parser("run", help="run one federation", formatter_class=raw, epilog=_keys())
    run.usage = "raysim run [-h] [-c FILE] [--out DIR] [key=value ...]"
    run.add_argument("-c", "--config", metavar="FILE", help="a YAML file of keys; key=value words win over it")
    run.add_argument(
        "--out", metavar="DIR", help="the run's folder, which must not exist (default: a new one in runs/)"
    )
    run.add_argument("--address", metavar="ADDRESS", help="short for ray_address=ADDRESS: the Ray cluster to join")

    again = commands.add_parser("resume", help="go on with a run that was interrupted or has failed")
    again.add_argument("run", metavar="RUN_DIR", help="the run's folder; it goes on after its last checkpoint")
    again.add_argument("--address", metavar="ADDRESS", help="the Ray cluster to join, if it is another than before")

    add_tune_command(commands)

    look = commands.add_parser("doctor", help="look at Ray, nodes and data, try one batch, propose resources")
    look.usage = "raysim doctor [-h] [-c FILE] [--out DIR] [key=value ...]"
    look.add_argument("-c", "--config", metavar="FILE", help="as of run: a YAML file of keys")
    look.add_argument("--out", metavar="DIR", help="as of run: the folder that it would write")
    look.add_argument("--address", metavar="ADDRESS", help="as of run")

    _add_cluster(commands)
    names = commands.add_parser("list", help="what there is: algorithms, tasks, networks, spaces")
    names.add_argument("what", choices=("algorithms", "tasks", "networks", "spaces"))
    names.add_argument("name", nargs="?", help="show this one with its fields")

    _add_data(commands)
    return made


def _add_data(commands: Any) -> None:
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


def _add_cluster(commands: Any) -> None:
    state = commands.add_parser("status", help="the runs and searches that are alive, and how far they are")
    state.add_argument("run", nargs="?", metavar="RUN", help="only this one: a name that it shows, or a run's folder")
    end = commands.add_parser("stop", help="end a run cleanly: what was recorded is kept, and raysim resume goes on")
    end.add_argument(
        "run", nargs="?", metavar="RUN", help="a name that raysim status shows, or a run's folder or its name"
    )
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
    from raysim.config.introspection import field_docs
    from raysim.config.schema import RunConfig

    rows = [row for row in field_docs(RunConfig) if row.name not in ("task", "algorithm")]
    lines = [f"  {row.name:<28} {row.doc} (default: {row.default})" for row in rows]
    return GRAMMAR + "\nkeys of a run:\n" + "\n".join(lines)
