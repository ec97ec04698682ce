"""The documentation is correct: its Python blocks run, and its commands run or at least are valid."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from raysim.cli.main import main
from raysim.cli.parser import make_parser
from raysim.cli.tune import search_options
from raysim.config.merge import merge, parse_pairs, read_file
from raysim.config.resolve import resolve
from raysim.search.request import build_request
from raysim.search.space import Space, from_cli
from raysim.search.space_files import read_space
from tests.support.paths import ROOT
from tests.unit.tasks.test_nnunet_plans import NEW, write as write_plans

PAGES = [ROOT / "README.md", ROOT / "cluster" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
SMALL = ["task.data.sites=3", "task.data.cases=4", "task.data.size=[16,16]", "rounds=1", "backend=local"]


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in FENCE.findall(page.read_text()) if kind == language]


def commands(page: Path) -> Iterator[list[str]]:
    """The raysim commands of a page, without `raysim` and without their comments."""
    for block in blocks(page, ""):
        for line in block.splitlines():
            if re.match(r"(\$ )?raysim \w", line):
                yield shlex.split(line.removeprefix("$ "), comments=True)[1:]


def files() -> dict[str, str]:
    """The Python files that the pages show, by the name in their first line."""
    found = [text for page in PAGES for text in blocks(page, "python")]
    return {match[1]: text for text in found if (match := re.match(r"# (\w+\.py)\b", text))}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files that the pages show or name."""
    for name, text in files().items():
        (tmp_path / name).write_text(text)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    write_plans(tmp_path, {"3d_fullres": NEW})
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(str(path) for path in (ROOT, tmp_path)))
    return tmp_path


def test_every_python_block_names_its_file() -> None:
    assert not [text for page in PAGES for text in blocks(page, "python") if not re.match(r"# \w+\.py\b", text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_is_a_valid_command(page: Path, folder: Path) -> None:
    for arguments in commands(page):
        args, rest = make_parser().parse_known_args(arguments)
        assert not [argument for argument in rest if argument.startswith("-")], arguments
        if args.command == "evaluate":
            parse_pairs(rest)
            continue
        if args.command not in ("run", "tune", "doctor"):
            assert not rest, arguments
            continue
        if args.config is not None and not Path(args.config).exists():
            continue  # the file of a run that an earlier command of the page creates
        given = merge(read_file(args.config) if args.config else {}, {})
        keys = parse_pairs(argument for argument in rest if "=" in argument)
        if args.command != "tune":
            resolve(merge(given, keys))
        elif args.resume is None:
            names = [argument for argument in rest if "=" not in argument]
            space = (read_space(names[0]) if names else Space()).override(from_cli(args.space))
            if args.tracker and find_spec(args.tracker) is None:
                args.tracker = None  # an extra that is not installed here
            options = search_options(args)
            build_request(space, given, keys, options)


def test_there_are_commands_to_check() -> None:
    found = [arguments for page in PAGES for arguments in commands(page)]
    assert sum(arguments[0] == "run" for arguments in found) > 30
    assert sum(arguments[0] == "tune" for arguments in found) > 8


@pytest.mark.parametrize(
    "keys",
    [
        ["algorithm=my_algorithm:Median"],
        ["algorithm=my_algorithm:Median", "network.norm=batch", "rounds=2"],
        ["network=my_parts:SmallNet", "network.width=16", "task.loss=my_parts:SquaredError"],
        ["task.loss=my_parts:focal", "task.loss.gamma=3"],
        ["task.augment=[{name: my_transforms:RandInvertd, prob: 0.3}]"],
        ["task.metrics=[my_metrics:missed_volume, dice]"],
    ],
    ids=lambda keys: "-".join(key.partition("=")[0] for key in keys),
)
def test_own_parts_run(keys: list[str], folder: Path) -> None:
    assert main(["run", *SMALL, *keys, "--out", "own"]) == 0
    assert (folder / "own" / "summary.json").exists()


def test_an_own_task_learns(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "task=my_task:Measurements", "algorithm.lr=0.05", "rounds=3", "backend=local"]) == 0
    mean = re.search(r"mean +inside +(\d\.\d+)", capsys.readouterr().out)
    assert mean is not None
    assert float(mean[1]) > 0.6


def runs_on_synthetic_data(arguments: list[str]) -> bool:
    """Whether one machine without a GPU can run this command; commands on tables run in other tests."""
    needs_more = any(
        part in " ".join(arguments) for part in ("table", "gpus", "-c ", "--resume", "--address", "my_task", "lora")
    )
    return arguments[0] in ("run", "list", "tune") and not needs_more


SYNTHETIC = {" ".join(each): each for page in PAGES for each in commands(page) if runs_on_synthetic_data(each)}


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted(SYNTHETIC))
def test_a_command_on_synthetic_data_runs(command: str, folder: Path) -> None:
    arguments = SYNTHETIC[command]
    if "--tracker" in arguments:
        pytest.importorskip(arguments[arguments.index("--tracker") + 1])
    for each in SYNTHETIC.values():  # the command whose run this one starts from
        out = each[each.index("--out") + 1] if "--out" in each else ""
        if out and {f"network.weights={out}", "--continue"} & {*arguments} and out in " ".join(arguments):
            run(folder, "raysim", *shortened(each, out))
    run(folder, "raysim", *shortened(arguments, "last"))


def shortened(arguments: list[str], out: str) -> list[str]:
    """The arguments of a run or a search on little data and for few rounds."""
    if arguments[0] == "list":
        return arguments
    if arguments[0] == "tune":
        return [*arguments, "--trials", "2", *SMALL[:-1], "rounds=2", "--out", out]
    if "--continue" in arguments:
        return [*arguments, "rounds=6", "--out", out]
    given = {argument.partition("=")[0] for argument in arguments}
    local = [] if any("kill" in argument for argument in arguments) else ["backend=local"]
    small = ["task.data.sites=3", "task.data.cases=4", "task.data.size=[16,16]", *local]
    return [*arguments, *(key for key in small if key.partition("=")[0] not in given), "rounds=4", "--out", out]


@pytest.mark.slow
@pytest.mark.timeout(1800)  # ten commands, each with a start of Ray
def test_get_started_runs_as_typed(folder: Path) -> None:
    """Run every command and script of the page in order, then the scripts of other pages that read its results."""
    outputs = []
    for kind, text in FENCE.findall((ROOT / "docs" / "get-started.md").read_text()):
        lines = text.splitlines()
        if kind == "python":
            outputs.append(run(folder, "python", lines[0].split()[1]))
        for line in lines if kind == "" else ():
            if line.startswith("raysim "):
                expected = (
                    2 if line == "raysim resume first" else 0
                )  # the run is done, and the page states that it is refused
                outputs.append(run(folder, *shlex.split(line), expected=expected))
    assert any("torch.Size([1, 2, 64, 64])" in output for output in outputs)
    assert {"first", "unseen", "fedprox", "search"} <= {path.name for path in folder.iterdir()}
    assert "outside" in next(output for output in outputs if "unseen" in output)
    assert "clinic-c" in run(folder, "python", "read_results.py")
    assert re.search(r"^2 \d\.\d+$", run(folder, "python", "rounds.py"), re.M)
    run(folder, "raysim", "run", "-c", "search/best.yaml", "--out", "again")


def run(folder: Path, program: str, *arguments: str, expected: int = 0) -> str:
    start = [sys.executable, *(["-m", "raysim"] if program == "raysim" else [])]
    done = subprocess.run([*start, *arguments], capture_output=True, text=True, timeout=400, check=False, cwd=folder)
    assert done.returncode == expected, done.stdout + done.stderr
    return done.stdout
