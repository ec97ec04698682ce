"""Small deliberate defects, one at a time: the named tests have to notice each. `make mutations`.

With arguments, only the mutations whose file or tests contain one of them.


tests/mutations.toml lists them: `file`, the exact text `old` (once in the file), the text `new` in its place, and the
`tests` that have to fail. The tests are those of `make test`; where only a slow test notices, `only` states the reason.
The work is done in a temporary copy of the tree. Exit code 1 if a defect goes unnoticed or a text is not found.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
TREE = ("raysim", "algorithms", "search_spaces", "tests", "examples", "cluster", "docs")
FILES = ("pyproject.toml", "README.md", "constraints.txt")
TESTS_FAILED = 1  # pytest's exit code: tests ran, and some failed
TIME_LIMIT_S = 600


@dataclass(frozen=True)
class Mutation:
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    only: str = ""

    @property
    def package(self) -> str:
        parts = Path(self.file).parts
        return parts[1] if parts[0] == "raysim" else parts[0]


def read_mutations(path: Path, patterns: list[str]) -> list[Mutation]:
    """The mutations whose file, or whose tests, contain one of the patterns; all if there are none."""
    entries = tomllib.loads(path.read_text())["mutation"]
    found = [Mutation(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]
    texts = [(one, " ".join((one.file, *one.tests))) for one in found]
    return [one for one, text in texts if not patterns or any(pattern in text for pattern in patterns)]


@contextmanager
def copied_tree() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="raysim-mutations-") as folder:
        for name in TREE:
            shutil.copytree(ROOT / name, Path(folder, name), ignore=shutil.ignore_patterns("__pycache__", "runs"))
        for name in FILES:
            shutil.copy(ROOT / name, folder)
        yield Path(folder)


def outcome(one: Mutation, tree: Path) -> tuple[bool, str]:
    """Whether the tests notice the defect, and the first test that does, or what went wrong."""
    path = tree / one.file
    text = path.read_text() if path.exists() else ""
    if text.count(one.old) != 1:
        return False, f"the text is {text.count(one.old)} times in the file, not once"
    path.write_text(text.replace(one.old, one.new))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *one.tests]
    command += [] if one.only else ["-m", "not slow"]
    env = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=tree, env=env, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return True, f"no end within {TIME_LIMIT_S} s"
    finally:
        path.write_text(text)
    failed = re.search(r"^FAILED \S*::(\S+)", done.stdout, re.M)
    if done.returncode == TESTS_FAILED and failed:
        return True, failed[1]
    return False, "unnoticed" if done.returncode == 0 else done.stdout[-2000:] + done.stderr[-2000:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", help="only mutations whose file or tests contain one of these")
    mutations = read_mutations(Path(__file__).with_suffix(".toml").with_stem("mutations"), parser.parse_args().patterns)
    survived = 0
    with copied_tree() as tree:
        for number, one in enumerate(mutations, start=1):
            start = time.monotonic()
            noticed, how = outcome(one, tree)
            survived += not noticed
            verdict = ("test-all" if one.only else "noticed") if noticed else "SURVIVED"
            where = f"{one.package:<12} {one.file}"
            print(f"{number:>3} {verdict:<8} {time.monotonic() - start:>5.0f} s  {where:<60} {how}", flush=True)
    counts = f"{len(mutations)} mutations, {sum(bool(one.only) for one in mutations)} for make test-all"
    print(f"{counts}; {survived} survived")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
