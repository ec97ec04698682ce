"""A table of digests: proof that a change moves no bit.

    python tests/digest_table.py --save before.json                     before the change
    python tests/digest_table.py --compare before.json                  after it, on the same machine

It runs every algorithm on the synthetic task, in one process and on Ray; FCL with fine-tuning; a run that is resumed;
a run whose client actor is killed; the best trial of a small search; and, with `--data DIR`, two examples on real
data. Digests depend on the processor and on the versions of torch and numpy, so both tables are made on one machine.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
sys.path.insert(0, str(Path(__file__).parents[1]))

import ray

from raysim.cli.main import main
from raysim.core.registry import algorithms

BACKEND = "backend"
SYNTHETIC = (
    *("rounds=3", "cohort=0.7", "evaluate_every=3", "task.data.sites=4", "task.data.cases=6", "task.data.size=[16,16]"),
    *("task.network.name=unet", "task.network.channels=[2,4]", "task.network.strides=[2]", "task.network.norm=batch"),
    *("task.data.outside=[far]", "task.data.unlabelled=2", "task.batch_size=2"),
)
ON_RAY = ("resources.client_actors=2",)
EXAMPLES = {
    "retina": ("retina_vessels", "rounds=2", "evaluate_every=2", "task.data.size=[64,64]"),
    "heart": ("heart_disease", "rounds=4", "evaluate_every=4"),
}


def table(scratch: Path, data: Path | None) -> dict[str, str]:
    """The digest of each run by its name."""
    cases: dict[str, Callable[[Path], str]] = {}
    for name in sorted(algorithms()):
        cases[f"{name}, local"] = lambda out, name=name: run(out, f"algorithm={name}", f"{BACKEND}=local", *SYNTHETIC)
        cases[f"{name}, ray"] = lambda out, name=name: run(out, f"algorithm={name}", *ON_RAY, *SYNTHETIC)
    tuned = ("algorithm=fcl", "algorithm.pretrain_rounds=1", "algorithm.finetune=ditto", f"{BACKEND}=local")
    cases["fcl with fine-tuning"] = lambda out: run(out, *tuned, *SYNTHETIC)
    cases["resumed"] = resumed
    cases["killed actor"] = lambda out: run(out, "algorithm=fedsm", "chaos=kill client@2", *ON_RAY, *SYNTHETIC)
    cases["best trial of a search"] = searched
    for name, (folder, *arguments) in EXAMPLES.items() if data is not None else ():
        config = str(Path(__file__).parents[1] / "examples" / f"{name}.yaml")
        where = f"task.data.table={data / folder / 'table.csv'}"
        cases[f"example {name}"] = lambda out, config=config, where=where, arguments=arguments: run(
            out, "-c", config, where, f"{BACKEND}=local", *arguments
        )
    found = {}
    for number, (name, case) in enumerate(cases.items()):
        found[name] = case(scratch / str(number))
        print(f"{name}: {found[name][:16]}", file=sys.stderr, flush=True)
    return found


def run(out: Path, *arguments: str) -> str:
    command("run", *arguments, "--out", str(out))
    return str(json.loads((out / "summary.json").read_text())["digest"])


def resumed(out: Path) -> str:
    """A run that lost its last round: it goes on from the checkpoint before it."""
    run(out, "algorithm=ditto", f"{BACKEND}=local", *SYNTHETIC)
    (out / "summary.json").unlink()
    shutil.rmtree(out / "checkpoints" / "round_0003")
    command("resume", str(out))
    return str(json.loads((out / "summary.json").read_text())["digest"])


def searched(out: Path) -> str:
    space = ("--space", "algorithm.lr=loguniform(1e-3,1e-1)", "--trials", "3", "algorithm=fedavg")
    command("tune", *space, *SYNTHETIC, "--out", str(out))
    lines = (out / "best.yaml").read_text().splitlines()
    return next(line.removeprefix("# digest: ") for line in lines if line.startswith("# digest: "))


def command(*arguments: str) -> None:
    with open(os.devnull, "w") as nowhere:
        shown, sys.stdout = sys.stdout, nowhere
        try:
            code = main(arguments)
        finally:
            sys.stdout = shown
    if code != 0:
        raise SystemExit(f"raysim {' '.join(arguments)} ended with exit code {code}")


def compare(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """The names of the runs whose digests differ or are missing."""
    return [name for name in {**before, **after} if before.get(name) != after.get(name)]


def arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", metavar="FILE", type=Path, help="write the table here, as JSON")
    parser.add_argument("--compare", metavar="FILE", type=Path, help="compare the table with this one")
    parser.add_argument("--data", metavar="DIR", type=Path, help="the folder of retina_vessels and heart_disease")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    args = arguments(None)
    ray.init(
        address="local",
        num_cpus=3,
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    with tempfile.TemporaryDirectory() as folder:
        digests = table(Path(folder), args.data.absolute() if args.data else None)
    ray.shutdown()
    for name, value in digests.items():
        print(f"{name:<40} {value}")
    if args.save:
        args.save.write_text(json.dumps(digests, indent=1) + "\n")
    if args.compare:
        wrong = compare(json.loads(args.compare.read_text()), digests)
        print(f"different: {', '.join(wrong)}" if wrong else f"all {len(digests)} digests are equal")
        raise SystemExit(bool(wrong))
