"""docs/security.md judges every known vulnerability of the pinned versions. Needs PyPI."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.slow


def audit(folder: Path) -> dict[str, Any]:
    """The report of pip-audit about constraints.txt. Skips if PyPI cannot be reached."""
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    pip = [folder / "venv" / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", "pip-audit"]
    installed = subprocess.run(pip, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"pip-audit cannot be installed: {installed.stderr[-200:]}")
    command = [folder / "venv" / "bin" / "pip-audit", "--no-deps", "--disable-pip", "--format", "json"]
    done = subprocess.run([*command, "-r", ROOT / "constraints.txt"], capture_output=True, text=True)
    if not done.stdout.startswith("{"):
        pytest.skip(f"the vulnerability service cannot be reached: {done.stderr[-200:]}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_no_pinned_version_has_a_vulnerability_that_is_not_judged(tmp_path: Path) -> None:
    packages = audit(tmp_path)["dependencies"]
    unanswered = [each["name"] for each in packages if "skip_reason" in each]
    if len(unanswered) == len(packages):
        pytest.skip("the package index has no data about vulnerabilities of versions: pip-audit needs that of PyPI")
    assert not unanswered
    judged = set(re.findall(r"(?:CVE|GHSA|PYSEC)-[\w-]+", (ROOT / "docs" / "security.md").read_text()))
    found = {
        f"{each['name']} {each['version']}: {problem['id']}"
        for each in packages
        for problem in each["vulns"]
        if judged.isdisjoint([problem["id"], *problem["aliases"]])
    }
    assert not found, "judge them in docs/security.md"
