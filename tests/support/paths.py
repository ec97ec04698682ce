"""Folders that tests read."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"  # real data sets beside the project; tests that need them skip without them
CASES = ROOT.parent / "shared" / "cases"  # inputs reported by users of other programs, beside the project
