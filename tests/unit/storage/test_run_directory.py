"""The run directory: reserved from the start, and removed if the run is refused."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from raysim.core.errors import ConfigError
from raysim.core.events import ActorPlacement, ActorsPlaced
from raysim.storage.run_directory import (
    check_new_directory,
    commit,
    exclusive_lock,
    lock_owner,
    reserve_directory,
)


def test_runs_that_start_together_get_different_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ExitStack() as held, ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: held.enter_context(reserve_directory(None, "fedavg-toy")), range(16)))
        assert sorted(folder.name for folder in folders) == [f"fedavg-toy-{n:03}" for n in range(1, 17)]
        for folder in folders:
            (folder / "summary.json").touch()
    assert len(list((tmp_path / "runs").iterdir())) == 16


@pytest.mark.parametrize("out", [None, "new/deep/out"])
def test_a_refused_run_leaves_no_folder(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError), reserve_directory(out, "fedavg-toy"):
        raise ConfigError("no such key")
    assert list(tmp_path.iterdir()) == []


def test_existing_folders_are_not_changed(tmp_path):
    (tmp_path / "old").mkdir()
    with pytest.raises(ConfigError, match="never overwrites"), reserve_directory(str(tmp_path / "old"), "x"):
        pass
    with pytest.raises(ConfigError), reserve_directory(str(tmp_path / "old" / "new"), "x"):
        raise ConfigError("refused")
    assert list(tmp_path.rglob("*")) == [tmp_path / "old"]


def test_a_folder_that_cannot_be_created_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigError, match="cannot create the run directory"),
        reserve_directory(str(tmp_path / "file" / "x"), "x"),
    ):
        pass


def test_the_folder_is_an_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with reserve_directory("here", "x") as folder:
        assert folder == Path(tmp_path, "here")


def test_lock_owner_is_the_process_that_holds_the_lock(tmp_path: Path) -> None:
    assert lock_owner(tmp_path) is None
    with exclusive_lock(tmp_path):
        assert lock_owner(tmp_path) == json.loads((tmp_path / ".process").read_text())
    assert lock_owner(tmp_path) is None


def test_commit_fills_a_new_directory_and_keeps_the_first_configuration(tmp_path: Path) -> None:
    place = ActorPlacement("client-01", "client-01[a]", "node", 7, 1.0, 0.0, [], "cpu", 1)
    commit(tmp_path, {"rounds": 2}, {"python": "3.11"}, ActorsPlaced([place], {"b": "local", "a": "client-01"}))
    commit(tmp_path, {"rounds": 9}, {}, ActorsPlaced([place], {"a": "client-01"}))
    assert (tmp_path / "config.yaml").read_text() == "rounds: 2\n"
    assert json.loads((tmp_path / "env.json").read_text()) == {"python": "3.11"}
    assert (tmp_path / "checkpoints").is_dir()
    (site,) = json.loads((tmp_path / "placement.json").read_text())
    assert (site["site"], site["actor"], site["node"], site["pid"]) == ("a", "client-01", "node", 7)


def test_a_url_is_refused_as_run_directory() -> None:
    with pytest.raises(ConfigError, match="a run is written to a folder, not to a URL; use a local or mounted folder"):
        check_new_directory("s3://bucket/run", "a run")
