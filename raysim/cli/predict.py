"""`raysim predict`: predictions of new images or rows with the method of a finished run."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysim.core.formatting import pluralize

if TYPE_CHECKING:  # its import is slow
    from raysim.core.events import Event


def add_predict_command(commands: Any) -> None:
    """Add the parser of the command to the subparsers `commands`."""
    parser = commands.add_parser("predict", help="predict new images with the method of a finished run")
    add = parser.add_argument
    add("run", metavar="RUN", help="the run directory")
    add("--images", metavar="DIR|TABLE", required=True, help="a folder of images, or a table of images or rows")
    add(
        "--out",
        metavar="DIR",
        required=True,
        help="the folder of the results; to continue an interrupted prediction, repeat the command",
    )
    add(
        "--site",
        metavar="NAME",
        help="predict with the model of this site of the run (default: that of a new outside site)",
    )
    add_round_option(parser)
    add("--probabilities", action="store_true", help="also write the probability of each class at each voxel")
    add_backend_options(parser)


def add_round_option(parser: argparse.ArgumentParser) -> None:
    """Add --round."""
    parser.add_argument(
        "--round", choices=("best", "last"), help="the round of the model (default: best, if one was chosen)"
    )


def add_backend_options(parser: argparse.ArgumentParser) -> None:
    """Add --backend and --address."""
    parser.add_argument(
        "--backend", choices=("ray", "local"), help="where to compute (default: the backend of the run)"
    )
    parser.add_argument("--address", metavar="ADDRESS", help="the Ray cluster to join, if it has changed")


def predict(args: argparse.Namespace) -> int:
    """Run the command."""
    from raysim.cli.run import end_cleanly_on_sigterm
    from raysim.core.events import ActorsPlaced, RunFinished
    from raysim.distributed import finished_run_commands
    from raysim.reporting.console import RunConsole
    from raysim.reporting.terminal import Terminal

    end_cleanly_on_sigterm()
    console = RunConsole(Terminal())

    def show(event: Event) -> None:
        if not isinstance(event, RunFinished | ActorsPlaced):
            console.show(event)

    with console.live():
        found = finished_run_commands.predict(
            args.run,
            args.images,
            args.out,
            site=args.site,
            round=args.round,
            probabilities=args.probabilities,
            backend=args.backend,
            ray_address=args.address,
            on_event=show,
        )
    _print_results(found, Path(args.out).absolute(), console)
    return 0


def _print_results(found: Mapping[str, Any], out: Path, console: Any) -> None:
    from raysim.federation.prediction import PREDICTIONS_FILE
    from raysim.reporting.console import site_tables

    if found["summary"] is not None:
        for table in site_tables(found["summary"], console.console.width):
            console.console.print(table)
    console.say(f"{pluralize(found['cases'], 'case')}, predictor: {found['predictor']}")
    console.say(f"results: {out}, listed in {PREDICTIONS_FILE}")
