"""The readers of run folders and of initial weights, each with intact files, for tests/fuzz.py."""

from __future__ import annotations

import atexit
import io
import shutil
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from tempfile import mkdtemp

from raysim.core.errors import RaysimError

SPLIT = b"\0SPLIT\0"  # between the files of a folder


def a_network_file(kind: str) -> bytes:
    import torch
    from safetensors.torch import save

    tensors, file = {"weight": torch.ones(3, 2), "bias": torch.arange(3.0)}, io.BytesIO()
    if kind == "safetensors":
        return save(tensors)
    torch.save({"state_dict": tensors, "epoch": 3}, file, _use_new_zipfile_serialization=kind != "legacy")
    if kind != "pickle":
        return file.getvalue()
    with zipfile.ZipFile(file) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def read_network_file(folder: Path, content: bytes, kind: str) -> object:
    """Initial weights of a file, and in a bundle; for `pickle` with this pickle in an intact archive."""
    import torch

    from raysim.tasks.initial_weights import with_initial_weights

    if kind == "pickle":
        file = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(a_network_file("zip"))) as old, zipfile.ZipFile(file, "w") as new:
            for name in old.namelist():
                new.writestr(name, content if name.endswith("data.pkl") else old.read(name))
        content = file.getvalue()
    path = folder / "a.safetensors" if kind == "safetensors" else folder / "models" / "model.pt"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    source = path if kind == "safetensors" else folder
    return with_initial_weights(partial(torch.nn.Linear, 2, 3), {"weights": str(source), "weights_partial": True})()


RUN_FILES = ("config.yaml", "summary.json", "log.jsonl", "env.json", "placement.json", "pictures/pictures.json")
TABLES = ("cases.parquet", "rounds.parquet", "sites.parquet")


@cache
def finished_run() -> Path:
    """A finished run, which is removed when the process ends."""
    from tests.support.trained import trained

    folder = Path(mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    trained(folder, "pictures")
    return folder / "run"


def a_run(files: Sequence[str]) -> bytes:
    return SPLIT.join((finished_run() / file).read_bytes() for file in files)


def damaged_run(folder: Path, content: bytes, files: Sequence[str]) -> Path:
    """A copy of the run with these files."""
    shutil.copytree(finished_run(), folder / "run")
    for file, part in zip(files, content.split(SPLIT), strict=False):
        (folder / "run" / file).write_bytes(part)
    return folder / "run"


def read_run(folder: Path, content: bytes, files: Sequence[str]) -> object:
    """All commands that read the folder of a finished run."""
    from raysim.federation.trained_run import open_run
    from raysim.reporting.comparison import CompareOptions, compare
    from raysim.reporting.comparison_tables import render
    from raysim.reporting.run_list import list_runs, run_table

    damaged = damaged_run(folder, content, files)
    for action in (
        lambda: run_table(list_runs(folder)),
        lambda: render(compare([folder], CompareOptions()), "latex"),
        lambda: [(run := open_run(damaged)).facts, run.rounds, run.outside, run.task],
    ):
        with suppress(RaysimError):
            action()
    return list_runs(folder)


def read_report(folder: Path, content: bytes, files: Sequence[str]) -> object:
    """The pages of a finished run."""
    from raysim.cli.report import report

    damaged = damaged_run(folder, content, files)
    with suppress(RaysimError):
        report([damaged, finished_run()], folder / "two.html")
    return report([damaged], None)
