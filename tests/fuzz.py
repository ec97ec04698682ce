"""Feeds damaged files to every reader of untrusted files: `python tests/fuzz.py --minutes 60 [READER ...]`.

A reader may return a value or raise a RaysimError. Any other exception, and more than MAX_MEMORY for a file below 1 MB,
is a defect: its input is kept in /tmp/raysim-fuzz, and the exit code is 1. Each reader runs in its own process.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import multiprocessing
import resource
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings, strategies as st

sys.path.insert(0, str(Path(__file__).parent.parent))
from raysim.core.errors import RaysimError
from tests.support.fuzz_readers import READERS

MAX_MEMORY = 1_000_000_000  # bytes above those of the idle process
KEPT = Path(tempfile.gettempdir()) / "raysim-fuzz"
Edits = list[tuple[int, int, bytes]]  # position, kind, piece


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
    st.tuples(st.integers(0, 65535), st.integers(0, 2), st.one_of(st.binary(max_size=8), st.sampled_from(PIECES))),
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
    """The largest memory so far of this process and of the processes that it started, in bytes."""
    both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(resource.getrusage(each).ru_maxrss for each in both) * 1024


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
