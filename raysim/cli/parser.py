"""What the command line takes: its commands, their options and the help that each gives."""

from __future__ import annotations

import argparse
from typing import Any

from raysim._version import __version__

GRAMMAR = """\
keys are dotted, and the same in a file and on the command line:
  raysim run                                     the synthetic default
  raysim run rounds=20 algorithm=fedprox algorithm.mu=0.1
  raysim run -c examples/retina.yaml task.data.table=retina/table.csv seed=1 --out runs/first
`raysim list algorithms NAME` and `raysim list tasks NAME` show the keys under algorithm. and task.
"""
TUNE = """\
SPACE is a file of yours that ends with .py, or one of `raysim list spaces`:
  raysim tune fedsm -c examples/retina.yaml task.data.table=retina/table.csv --trials 32 --scheduler asha --metric worst
  raysim tune --space algorithm.lr=loguniform(1e-4,1e-1) --space algorithm.epochs=choice(1,2,4) rounds=10
  raysim tune --space algorithm=choice(fedprox,fedsm) --space algorithm.fedsm.pull=uniform(0.5,1) --searcher optuna
  raysim tune -c examples/wbc.yaml task.data.table=wbc/table.csv --holdout each
  raysim tune --resume runs/tune-001 --trials 100
A word that fixes a key takes it out of the space.
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

    _add_tune(commands)

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
    tune.add_argument("--keep-checkpoints", choices=("best", "all"), help="whose checkpoints stay (default: best)")
    tune.add_argument("--tracker", choices=("mlflow", "wandb"), help="tell these too")
    tune.add_argument(
        "--out", metavar="DIR", help="the search's folder, which must not exist (default: a new one in runs/)"
    )
    tune.add_argument("--address", metavar="ADDRESS", help="short for ray_address=ADDRESS: the Ray cluster to join")
    tune.add_argument("--resume", metavar="DIR", help="go on with this search; --trials makes it longer")
    tune.add_argument("--dry-run", action="store_true", help="show the trials, what they need and how long that takes")


def _keys() -> str:
    from raysim.config.introspection import field_docs
    from raysim.config.schema import RunConfig

    rows = [row for row in field_docs(RunConfig) if row.name not in ("task", "algorithm")]
    lines = [f"  {row.name:<28} {row.doc} (default: {row.default})" for row in rows]
    return GRAMMAR + "\nkeys of a run:\n" + "\n".join(lines)
