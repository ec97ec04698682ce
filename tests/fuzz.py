"""Feeds damaged files to every reader of files of others: `python tests/fuzz.py --minutes 60 [READER ...]`.

A reader may return a value or raise a RaysimError. Any other exception, and more than MAX_MEMORY for a file below 1 MB,
is a defect: its input is kept in /tmp/raysim-fuzz, and the exit code is 1. Each reader runs in its own process.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import logging
import multiprocessing
import resource
import sys
import tempfile
import time
import traceback
import warnings
from base64 import encodebytes
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings, strategies as st

sys.path.insert(0, str(Path(__file__).parent.parent))
from raysim.core.errors import RaysimError

MAX_MEMORY = 1_000_000_000  # bytes above those of the idle process
KEPT = Path(tempfile.gettempdir()) / "raysim-fuzz"
Reader = Callable[[Path, bytes], object]
Edits = list[tuple[int, int, bytes]]  # position, kind, piece


def a_table() -> bytes:
    return b"site,split,image,label,age\na,train,x.png,1,3\nb,test,y.png,0,4.5\nb,val,z.png,1,5\n"


def read_csv(folder: Path, content: bytes) -> object:
    from raysim.data.table import read_table

    (folder / "t.csv").write_bytes(content)
    return read_table(str(folder / "t.csv"), check_files=False)


def a_parquet() -> bytes:
    import pandas as pd

    file = io.BytesIO()
    pd.read_csv(io.BytesIO(a_table())).to_parquet(file)
    return file.getvalue()


def read_parquet(folder: Path, content: bytes) -> object:
    from raysim.data.table import read_table

    (folder / "t.parquet").write_bytes(content)
    return read_table(str(folder / "t.parquet"), check_files=False)


def a_volume() -> bytes:
    import nibabel

    volume = nibabel.Nifti1Image(np.arange(210, dtype=np.int16).reshape(5, 6, 7), np.eye(4))
    volume.header.set_slope_inter(2, 1)
    return bytes(volume.to_bytes())


def read_image(folder: Path, content: bytes, name: str) -> object:
    from raysim.data.image_reader import read_image

    (folder / name).write_bytes(content)
    with suppress(RaysimError):
        read_image(str(folder / name), mask=True)
    return read_image(str(folder / name))


def a_picture(kind: str) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(file, kind)
    return file.getvalue()


def read_yaml(_: Path, content: bytes) -> object:
    from raysim.config.yaml_loader import load_yaml

    return load_yaml(content.decode(errors="replace"), "run.yaml")


def read_checkpoint(folder: Path, content: bytes) -> object:
    """A checkpoint with this state, and with a correct sum."""
    from raysim.core.model import Model
    from raysim.storage import checkpoint

    path = checkpoint.write(folder, 1, Model.of({"w": np.ones(3, np.float32)}), {"a": {"n": 1}})
    text, _, arrays = content.partition(b"\0SPLIT\0")
    index = json.loads((path / "checkpoint.json").read_text())
    for name in ("state", "client_states/a"):
        for file, part in ((f"{name}.json", text), (f"{name}.safetensors", arrays)):
            (path / file).write_bytes(part)
            index["sha256"][file] = hashlib.sha256(part).hexdigest()
    (path / "checkpoint.json").write_text(json.dumps(index))
    try:
        return checkpoint.read(path).client_states["a"]
    except KeyError:
        return None


def a_checkpoint() -> bytes:
    from safetensors.numpy import save

    state = {
        "mapping": [["m", {"model": [["w", True]], "at": "m"}], ["t", {"tuple": [{"array": "t/0", "tensor": True}]}]]
    }
    return json.dumps(state).encode() + b"\0SPLIT\0" + save({"m/w": np.ones(3, np.float32), "t/0": np.ones(2)})


def an_archive() -> bytes:
    import tarfile

    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("a", "folder/b"):
            member = tarfile.TarInfo(name)
            member.size = 3
            archive.addfile(member, io.BytesIO(b"abc"))
    return file.getvalue()


def read_archive(folder: Path, content: bytes) -> object:
    from raysim.distributed.artifact_bundle import BEGIN, END, unpack

    return unpack(f"{BEGIN}\n{encodebytes(gzip.compress(content)).decode()}{END}", folder / "out")


YAML = b"task: {name: toy, data: &d {a: 1e-3}}\nb: [*d, 'x', 2024-01-01]\n<<: *d\nc: !!int 3\n"
PICTURES = {"PNG": "png", "TIFF": "tif", "JPEG": "jpg", "JPEG2000": "jp2", "BMP": "bmp", "GIF": "gif", "WEBP": "png"}
READERS: dict[str, tuple[Callable[[], bytes], Reader]] = {
    "csv": (a_table, read_csv),
    "parquet": (a_parquet, read_parquet),
    "nifti": (a_volume, partial(read_image, name="v.nii")),
    "nifti.gz": (a_volume, lambda folder, content: read_image(folder, gzip.compress(content), "v.nii.gz")),
    **{
        kind.lower(): (partial(a_picture, kind), partial(read_image, name=f"p.{suffix}"))
        for kind, suffix in PICTURES.items()
    },
    "yaml": (lambda: YAML, read_yaml),
    "checkpoint": (a_checkpoint, read_checkpoint),
    "archive": (an_archive, read_archive),
}
PIECES = [
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    bytes(4),
    b"\x00\x00\x80\x7f",
    b"9" * 9,
    b"&a [*a, *a]",
    b"\x1b[31m",
    b"{",
    b"[",
]
EDITS = st.lists(
    st.tuples(st.integers(0, 4095), st.integers(0, 2), st.one_of(st.binary(max_size=8), st.sampled_from(PIECES))),
    min_size=1,
    max_size=6,
)


def damage(content: bytes, edits: Edits) -> bytes:
    """`content` with bytes overwritten, inserted, or repeated."""
    for position, kind, piece in edits:
        at = position % (len(content) + 1)
        if kind == 2:
            content = content[:at] + content[at // 2 : at] * 3 + content[at:]
        else:
            content = content[:at] + piece + content[at + (len(piece) if kind == 0 else 0) :]
    return content[:1_000_000]


def memory() -> int:
    """The largest memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Fuzzer:
    """Calls one reader with damaged files, and counts them, the refused ones and the defects."""

    def __init__(self, name: str) -> None:
        make, self.read = READERS[name]
        self.name, self.origin, self.idle = name, make(), 0
        self.files, self.refused, self.defects = 0, 0, set[str]()
        self.attempt([])  # imports the libraries
        assert not self.refused, "the undamaged file is valid"
        self.idle = memory()

    def attempt(self, edits: Edits) -> None:
        """Read the original after these edits."""
        before, content = memory(), damage(self.origin, edits)
        self.files += 1
        with tempfile.TemporaryDirectory() as folder:
            try:
                self.read(Path(folder), content)
            except RaysimError as error:
                self.refused += 1
                if "\n" in str(error):
                    self.report(content, f"an error of several lines: {str(error)[:200]!r}")
            except Exception:  # noqa: BLE001 - the defects that are searched for
                self.report(content, traceback.format_exc(limit=-2))
        if self.idle and memory() > max(before, self.idle + MAX_MEMORY):
            self.report(content, f"{(memory() - self.idle) / 1e6:.0f} MB of memory")

    def report(self, content: bytes, text: str) -> None:
        """Keep the file and print the defect, unless one at the same place was found."""
        if (place := "".join(text.splitlines()[-4:-2]) or text[:20]) not in self.defects:
            self.defects.add(place)
            KEPT.mkdir(parents=True, exist_ok=True)
            path = KEPT / f"{self.name}-{hashlib.sha256(content).hexdigest()[:12]}"
            path.write_bytes(content)
            print(f"{self.name}: defect with {path}:\n{text}", flush=True)


def fuzz(name: str, seconds: float) -> None:
    """Run one reader for this time; the exit code is 1 after a defect."""
    warnings.simplefilter("ignore")
    logging.disable()
    fuzzer, number, end = Fuzzer(name), 0, time.monotonic() + seconds
    checks: Any = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
    while time.monotonic() < end:
        run = settings(max_examples=100, phases=[Phase.generate], **checks)(given(EDITS)(fuzzer.attempt))
        seed(number)(run)()
        number += 1
    counts = f"{fuzzer.files} files, {fuzzer.refused} refused, {len(fuzzer.defects)} defects"
    print(f"{name}: {counts}, at most {(memory() - fuzzer.idle) / 1e6:.0f} MB more memory", flush=True)
    sys.exit(bool(fuzzer.defects))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("readers", nargs="*", metavar="READER", help=", ".join(READERS))
    parser.add_argument("--minutes", type=float, default=60.0, help="of all readers together")
    args = parser.parse_args()
    names, spawn = args.readers or list(READERS), multiprocessing.get_context("spawn")
    codes = []
    for name in names:
        process = spawn.Process(target=fuzz, args=(name, args.minutes * 60 / len(names)))
        process.start()
        process.join()
        codes.append(process.exitcode)  # negative if a library crashed
        if (process.exitcode or 0) < 0:
            print(f"{name}: the process ended by signal {-(process.exitcode or 0)}", flush=True)
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
