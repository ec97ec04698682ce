"""`raysim export`: the network of a finished run for other programs."""

from __future__ import annotations

import argparse
from typing import Any

from raysim.cli.predict import add_round_option


def add_export_command(commands: Any) -> None:
    """Add the parser of the command to the subparsers `commands`."""
    parser = commands.add_parser("export", help="export the network of a finished run: torch, ONNX or MONAI bundle")
    add = parser.add_argument
    add("run", metavar="RUN", help="the run directory")
    add(
        "--format",
        choices=("torch", "onnx", "bundle"),
        required=True,
        help="torch: a torch.export program (.pt2); onnx: ONNX, checked by onnxruntime; bundle: a MONAI bundle",
    )
    add("--site", metavar="NAME", help="export the model of this site of the run (default: that of a new outside site)")
    add(
        "--global",
        dest="use_global",
        action="store_true",
        help="export the global model, also if the method predicts with another one",
    )
    add_round_option(parser)
    add("--out", metavar="PATH", help="the new file, or the new folder of a bundle (default: in RUN/exports/)")


def export(args: argparse.Namespace) -> int:
    """Run the command."""
    from raysim.federation.export import export as write
    from raysim.reporting.terminal import Terminal

    path = write(args.run, args.format, site=args.site, use_global=args.use_global, round=args.round, out=args.out)
    Terminal().print(f"exported: {path}", highlight=False, markup=False, soft_wrap=True)
    return 0
