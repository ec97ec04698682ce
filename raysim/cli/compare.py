"""`raysim compare`: a table of groups of runs with means, intervals and paired tests."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysim.core.atomic_io import write_text

if TYPE_CHECKING:
    from raysim.reporting.comparison import Comparison
    from raysim.reporting.comparison_tables import TableFormat

EPILOG = """\
RUN is the folder of a run or of a search, or a folder with runs:
  raysim compare runs/                                     all runs, grouped by what differs in their configurations
  raysim compare runs/fedavg-* runs/fedbn-* --by algorithm --format latex --out table.tex
  raysim compare runs/ --metric outside/test/dice --reference fedavg
"""


def add_compare_command(commands: Any) -> None:
    """Add the parser of the command to the subparsers `commands`."""
    parser = commands.add_parser(
        "compare",
        help="compare finished runs: means, intervals, paired tests",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", type=Path, help="the folder of a run or of a search, or a folder with runs")
    add("--by", metavar="KEY", help="group by these keys alone, separated by commas (default: all keys that differ)")
    add("--round", choices=("best", "last"), help="the round of each run (default: best, if all runs have one)")
    add("--metric", metavar="M", help="a metric, or role/split/metric (default: the main metric of the runs)")
    add("--split", choices=("val", "test"), help="the cases that are compared (default: test)")
    add(
        "--test",
        choices=("wilcoxon", "permutation"),
        default="wilcoxon",
        help="the paired test over cases; auc always uses DeLong's test (default: %(default)s)",
    )
    add("--reference", metavar="GROUP", help="the group with which the others are compared (default: the first)")
    add("--format", choices=("text", "csv", "latex", "html"), default="text", help="default: %(default)s")
    add("--out", metavar="FILE", type=Path, help="write to this file, which must not exist (default: print)")


def compare(args: argparse.Namespace) -> int:
    """Run the command and return the exit code."""
    from raysim.reporting.comparison import CompareOptions, compare
    from raysim.storage.run_directory import check_new_file

    if args.out is not None:
        check_new_file(args.out)
    options = {field.name: getattr(args, field.name) for field in fields(CompareOptions)}
    _write(compare(args.runs, CompareOptions(**options)), args.format, args.out)
    return 0


def _write(comparison: Comparison, form: TableFormat, out: Path | None) -> None:
    from raysim.reporting.comparison_tables import print_comparison, render
    from raysim.reporting.terminal import Terminal

    if form == "text" and out is None:
        print_comparison(comparison, Terminal())
        return
    text = render(comparison, form)
    if out is None:
        print(text, end="")
    else:
        write_text(out, text)
