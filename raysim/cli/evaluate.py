"""`raysim evaluate`: the scores of a finished run on other data, without training."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from raysim.cli.predict import add_round_option
from raysim.config.merge import parse_pairs

if TYPE_CHECKING:  # its import is slow
    from raysim.core.events import Event


def add_evaluate_command(commands: Any) -> None:
    """Add the parser of the command to the subparsers `commands`."""
    parser = commands.add_parser("evaluate", help="evaluate a finished run on other data or sites, without training")
    parser.usage = "raysim evaluate [-h] [--round best|last] [--out DIR] RUN [task.data.table=TABLE] [key=value ...]"
    parser.add_argument("run", metavar="RUN", help="the run directory")
    add_round_option(parser)
    parser.add_argument(
        "--out", metavar="DIR", help="the folder of the results, which must not exist (default: in RUN/evaluations/)"
    )


def evaluate(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Run the command. `overrides` are key=value arguments."""
    keys = parse_pairs(overrides)
    from raysim.cli.run import end_cleanly_on_sigterm
    from raysim.core.events import RunFinished
    from raysim.distributed import finished_run_commands
    from raysim.reporting.console import RunConsole, site_tables
    from raysim.reporting.terminal import Terminal

    end_cleanly_on_sigterm()
    console = RunConsole(Terminal())

    def show(event: Event) -> None:
        if not isinstance(event, RunFinished):
            console.show(event)

    with console.live():
        found = finished_run_commands.evaluate(args.run, keys, round=args.round, out=args.out, on_event=show)
    for table in site_tables(found.summary, console.console.width):
        console.console.print(table)
    for note in found.summary["notes"]:
        console.console.print(f"note: {note}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    console.say(f"round {found.summary['round']} of {found.summary['run']}")
    console.say(f"results: {found.path}")
    return 0
