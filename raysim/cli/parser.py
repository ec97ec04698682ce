"""The argument parser of the `raysim` command: subcommands, options and help texts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from raysim._version import __version__
from raysim.cli.compare import add_compare_command
from raysim.cli.completion import add_keys
from raysim.cli.evaluate import add_evaluate_command
from raysim.cli.export import add_export_command
from raysim.cli.predict import add_predict_command
from raysim.cli.tune import add_tune_command

KEY_SYNTAX = """\
Keys are dotted. They are the same in a config file and on the command line:
  raysim run                                     the default: FedAvg on the synthetic task
  raysim run rounds=20 algorithm=fedprox algorithm.mu=0.1
  raysim run -c examples/retina.yaml task.data.table=retina/table.csv seed=1 --out runs/first
`raysim list algorithms NAME` and `raysim list tasks NAME` show the keys under algorithm. and task.
"""


KINDS = {  # of `raysim list`
    "algorithms": "federated methods, for algorithm=NAME",
    "tasks": "learning problems, for task=NAME",
    "networks": "networks, for task.network=NAME",
    "losses": "losses, for task.loss=NAME",
    "transforms": "random transforms, for 'task.augment=[{name: NAME}]'",
    "metrics": "metrics, for 'task.metrics=[NAME]'",
    "spaces": "search spaces, for raysim tune NAME",
}


def make_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    parser = argparse.ArgumentParser(
        "raysim", description="Federated learning on medical images, on Ray: simulate and search."
    )
    parser.add_argument("--version", action="version", version=f"raysim {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    _add_run(commands)
    resume = commands.add_parser("resume", help="continue a run that was interrupted or has failed")
    resume.add_argument(
        "run",
        metavar="RUN_DIR",
        help="the directory of a run or of `raysim run --seeds`; a run continues after its last checkpoint",
    )
    resume.add_argument("--address", metavar="ADDRESS", help="the Ray cluster to join, if it has changed")

    add_tune_command(commands)
    add_compare_command(commands)
    runs = commands.add_parser("runs", help="list the runs in a folder")
    runs.add_argument("folder", nargs="?", type=Path, metavar="DIR", help="default: the folder of new runs, ./runs")

    doctor = commands.add_parser("doctor", help="check Ray, nodes and data, try one batch, propose resources")
    doctor.usage = "raysim doctor [-h] [-c FILE] [--out DIR] [key=value ...]"
    doctor.add_argument("-c", "--config", metavar="FILE", help="a YAML file of keys, as for `raysim run`")
    doctor.add_argument("--out", metavar="DIR", help="the run directory, as for `raysim run`")
    doctor.add_argument("--address", metavar="ADDRESS", help="the Ray cluster to join, as for `raysim run`")

    _add_report(commands)
    _add_cluster(commands)
    list_parser = commands.add_parser(
        "list", help="list algorithms, tasks, networks, losses, transforms, metrics, spaces"
    )
    list_parser.add_argument("what", nargs="?", choices=tuple(KINDS), help="default: show what can be listed")
    list_parser.add_argument("name", nargs="?", help="show the keys of this one")

    schema = commands.add_parser("schema", help="print the JSON schema of a config file, for editors")
    schema.add_argument("task", nargs="?", help="a task, also module:Class (default: all of raysim)")
    schema.add_argument("algorithm", nargs="?", help="an algorithm, also module:Class (default: all of raysim)")
    _add_data(commands)
    for add_command in (add_predict_command, add_evaluate_command, add_export_command):
        add_command(commands)
    add_keys(commands.choices)
    return parser


def _add_run(commands: Any) -> None:
    run = commands.add_parser(
        "run", help="run one federation", formatter_class=argparse.RawDescriptionHelpFormatter, epilog=_run_epilog()
    )
    run.usage = "raysim run [-h] [-c FILE | --continue RUN_DIR] [--out DIR] [--seeds N] [key=value ...]"
    run.add_argument("-c", "--config", metavar="FILE", help="a YAML file of keys; key=value takes precedence over it")
    run.add_argument(
        "--out", metavar="DIR", help="the run directory, which must not exist (default: a new one in runs/)"
    )
    run.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        help="run N seeds one after another, each in a folder of the run directory, and compare them at the end",
    )
    run.add_argument(
        "--continue",
        dest="continue_from",
        metavar="RUN_DIR",
        help="start from the last checkpoint of this run, with its keys and more rounds: rounds=N",
    )
    run.add_argument("--address", metavar="ADDRESS", help="the Ray cluster to join; the same as ray_address=ADDRESS")
    run.add_argument(
        "--anonymous-cases",
        action="store_true",
        help="hash the names of images and patients in cases.parquet; the same as anonymous_cases=true",
    )
    run.add_argument(
        "--tracker", metavar="NAME", help="also record the run in mlflow or wandb; the same as tracker=NAME"
    )


def _add_data(commands: Any) -> None:
    data = commands.add_parser("data", help="write or summarise the table of a data set").add_subparsers(
        dest="data_command", metavar="COMMAND", required=True
    )
    scan = data.add_parser("scan", help="write the table of a folder of images")
    scan.add_argument(
        "folders", nargs="+", metavar="FOLDER", help="the folder; or SITE=FOLDER for each of several sites"
    )
    scan.add_argument(
        "--out", metavar="FILE", help="the table to write (default: FOLDER/table.csv, or table.csv for several folders)"
    )
    scan.add_argument(
        "--group", metavar="REGEX", help="a regular expression on file paths; its part in ( ) is the patient"
    )
    make = data.add_parser("make", help="write the table of a public data set from the files of its owners")
    make.add_argument("name", nargs="?", metavar="NAME", help="the data set; without it, all are listed")
    make.add_argument("source", nargs="?", metavar="SOURCE", help="the folder with the unpacked files")
    make.add_argument("--out", metavar="DIR", help="the new folder of the table (default: NAME)")
    for command in (scan, make):
        command.add_argument(
            "--fractions",
            metavar="A,B,C",
            default="0.7,0.1,0.2",
            help="fractions of train, val, test (default: %(default)s)",
        )
        command.add_argument("--seed", type=int, default=0, help="seed of the split (default: %(default)s)")
    describe = data.add_parser("describe", help="show sites, splits, sizes, intensities, labels and problems")
    describe.add_argument("table")
    describe.usage = "raysim data describe [-h] [-c FILE] [--root ROOT] table [key=value ...]"
    describe.add_argument("-c", "--config", metavar="FILE", help="a YAML file of keys, as for `raysim run`")
    describe.add_argument("--root", help="the folder that relative paths start from (default: that of the table)")


def _add_report(commands: Any) -> None:
    report = commands.add_parser(
        "report", help="write report.html of a run or a search again, or a page with several runs side by side"
    )
    report.add_argument("runs", nargs="+", metavar="RUN", help="the directory of a run or a search that has ended")
    report.add_argument(
        "--out",
        metavar="PAGE",
        help="with several runs: the page to write, which must not exist (default: side_by_side.html). The report of "
        "a single run or search is always report.html in its directory",
    )


def _add_cluster(commands: Any) -> None:
    status = commands.add_parser("status", help="show active runs and searches with their progress")
    status.add_argument("run", nargs="?", metavar="RUN", help="show only this run, by its name or its run directory")
    stop = commands.add_parser("stop", help="stop a run cleanly; records are kept, and `raysim resume` continues it")
    stop.add_argument(
        "run",
        nargs="?",
        metavar="RUN",
        help="a name that `raysim status` shows, or a run directory, or the name of one",
    )
    stop.add_argument("--all", action="store_true", help="stop all runs and searches of the Ray cluster")
    submit = commands.add_parser("submit", help="run a command as a job of a Ray cluster, independent of this terminal")
    submit.usage = "raysim submit [-h] [--address URL] [--detach] [--attach JOB | COMMAND ...]"
    submit.add_argument("--detach", action="store_true", help="start the job without waiting for it")
    submit.add_argument("--attach", metavar="JOB", help="follow a submitted job, and fetch its results")
    submit.add_argument("--address", metavar="URL", help="the cluster's dashboard (default: http://127.0.0.1:8265)")
    submit.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="COMMAND ...", help="run, tune, doctor, ... with its arguments"
    )
    for command in (status, stop):
        command.add_argument("--address", help="the Ray cluster: HOST:PORT, or auto (default: RAY_ADDRESS)")


def _run_epilog() -> str:
    from raysim.config.introspection import field_docs
    from raysim.config.schema import RunConfig

    rows = [row for row in field_docs(RunConfig) if row.name not in ("task", "algorithm")]
    lines = [f"  {row.name:<28} {row.doc} (default: {row.default})" for row in rows]
    return KEY_SYNTAX + "\nkeys of a run:\n" + "\n".join(lines)
