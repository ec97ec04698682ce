"""Folders of runs that others have written: commands refuse damaged files, and show names without executing them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from raysim.cli.report import report
from raysim.core.errors import ConfigError, RaysimError
from raysim.federation.trained_run import open_run
from raysim.reporting.comparison import CompareOptions, compare
from raysim.reporting.comparison_tables import TableFormat, render
from raysim.reporting.pictures import ShownPictures, read_pictures
from raysim.reporting.run_list import list_runs, run_table
from raysim.storage.json_lines import read_jsonl
from tests.support.finished_runs import write_run

HOSTILE = '=HYPERLINK("//x")\n\\input{/etc/passwd} & \x1b[31m<script>alert(1)</script>'
ACTIONS: list[Callable[[Path], object]] = [
    lambda folder: run_table(list_runs(folder)),
    lambda folder: compare([folder], CompareOptions()),
    lambda folder: open_run(folder / "run").rounds,
]


def write_hostile_run(folder: Path) -> None:
    """A run whose names contain formulas, LaTeX, HTML and control characters."""
    write_run(folder, {"a": [0.5, 0.25]})
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["algorithm"]["name"] = HOSTILE
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def hostile(folder: Path, form: TableFormat) -> str:
    write_run(folder / "plain", {"a": [0.5, 0.75]})
    write_hostile_run(folder / "hostile")
    return render(compare([folder], CompareOptions(reference=HOSTILE)), form)


@pytest.mark.parametrize("form", ["text", "csv", "latex", "html"])
def test_a_comparison_has_no_control_characters(tmp_path: Path, form: TableFormat) -> None:
    text = hostile(tmp_path, form)
    assert "\x1b" not in text
    assert "31m" in text


def test_a_comparison_has_no_formulas(tmp_path: Path) -> None:
    assert "=HYPERLINK" not in hostile(tmp_path, "csv").replace("'=HYPERLINK", "")


def test_a_comparison_has_no_latex_commands_of_names(tmp_path: Path) -> None:
    for line in hostile(tmp_path, "latex").splitlines():
        assert line.startswith("%") or "\\input" not in line


def test_a_comparison_has_no_html_of_names(tmp_path: Path) -> None:
    assert "<script" not in hostile(tmp_path, "html")


@pytest.mark.slow
@pytest.mark.parametrize("value", [None, 3, "x", [], {}, -1e400], ids=str)
def test_an_unexpected_value_in_the_summary_is_refused(tmp_path: Path, value: Any) -> None:
    facts = {"shape": [1, 4, 4], "classes": ["0", "1"], "digest": "0", "direction": "higher"}
    write_run(tmp_path / "run", {"a": [0.5, 0.25]}, **facts)
    file = tmp_path / "run" / "summary.json"
    summary = json.loads(file.read_text())
    for key in summary:
        for changed in (summary | {key: value}, {name: each for name, each in summary.items() if name != key}):
            file.write_text(json.dumps(changed))
            for action in ACTIONS:
                with suppress(RaysimError):
                    action(tmp_path)


def test_a_report_of_a_damaged_run_is_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", {"a": [0.5]}, metrics=[])
    with pytest.raises(ConfigError, match=f"the files in {folder} cannot be read .*Error: .*damaged.*give other runs"):
        report([folder], None)
    assert not (folder / "report.html").exists()


def test_a_report_without_a_value_that_it_needs_is_refused(tmp_path: Path) -> None:
    facts = {"shape": [1, 4, 4], "classes": ["0", "1"], "digest": "0", "direction": "higher"}
    folder = write_run(tmp_path / "run", {"a": [0.5, 0.25]}, **facts)
    with pytest.raises(ConfigError, match=r"MissingValueError: 'dict object' has no attribute 'rounds'"):
        report([folder], None)
    assert not (folder / "report.html").exists()


def test_a_named_pipe_in_a_run_does_not_block(tmp_path: Path) -> None:
    write_run(tmp_path / "run", {"a": [0.5]})
    for name in ("summary.json", "failures.jsonl"):
        (tmp_path / "run" / name).unlink(missing_ok=True)
        os.mkfifo(tmp_path / "run" / name)
    assert [row.state for row in list_runs(tmp_path)] == ["unfinished"]
    assert list(read_jsonl(tmp_path / "run" / "failures.jsonl")) == []


LIST = """
import os, sys
from pathlib import Path
from raysim.reporting.run_list import list_runs
list_runs(Path(sys.argv[1]))  # imports all modules, which the other user may be unable to read
os.setgroups([]), os.setgid(65534), os.setuid(65534)
print([row.path for row in list_runs(Path(sys.argv[1]))])
"""


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_private_runs_of_other_users_are_left_out(tmp_path: Path) -> None:
    for name in ("private", "public"):
        write_run(tmp_path / name, {"a": [0.5]})
    (tmp_path / "private").chmod(0o700)
    for folder in (tmp_path, *list(tmp_path.parents)[:3]):  # with pytest-xdist one more
        folder.chmod(0o755)
    command = [sys.executable, "-c", LIST, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.strip() == "['public']", done.stderr


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "link.jpg"])
def test_pictures_outside_of_the_run_are_not_shown(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("secret")
    folder = tmp_path / "run" / "pictures"
    folder.mkdir(parents=True)
    (folder / "link.jpg").symlink_to(tmp_path / "secret")
    (folder / "own.jpg").write_bytes(b"own")
    entry = {"site": "a", "value": 0.5, "file": name}
    (folder / "pictures.json").write_text(json.dumps({"pictures": [entry], "data": {}, "classes": []}))
    assert read_pictures(tmp_path / "run") == ShownPictures()
    text = json.dumps({"pictures": [entry | {"file": "own.jpg"}], "data": {}, "classes": []})
    (folder / "pictures.json").write_text(text)
    assert list(read_pictures(tmp_path / "run").sites) == ["a"]
