"""The cache: entries are created once, memory-mapped, and never partially written."""

from __future__ import annotations

import os
import threading

import fsspec
import numpy as np
import pytest

from raysim.core.errors import ConfigError
from raysim.data.cache import cache_folder, cache_key, fingerprint, load_or_create
from raysim.data.cache_limit import limit_cache


def test_arrays_are_created_once_and_read_back(tmp_path):
    calls = []

    def make():
        calls.append(1)
        return {"train.inputs": np.arange(6.0).reshape(2, 3), "val.inputs": np.zeros((0, 3), np.float32)}

    first, second = (load_or_create(tmp_path, "entry", make) for _ in range(2))
    assert len(calls) == 1
    assert np.array_equal(first["train.inputs"], [[0, 1, 2], [3, 4, 5]])
    assert (second["val.inputs"].shape, second["val.inputs"].dtype) == ((0, 3), np.float32)


def test_a_change_stays_in_the_process(tmp_path):
    arrays = load_or_create(tmp_path, "entry", lambda: {"x": np.zeros(3)})
    arrays["x"][0] = 7
    assert not load_or_create(tmp_path, "entry", dict)["x"].any()


def test_two_concurrent_writers_get_the_same_entry(tmp_path):
    both, found = threading.Barrier(2), []

    def make():
        both.wait()  # both start before one of them publishes its entry
        return {"x": np.ones(1000)}

    threads = [threading.Thread(target=lambda: found.append(load_or_create(tmp_path, "entry", make))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(arrays["x"], np.ones(1000)) for arrays in found)
    assert os.listdir(tmp_path) == ["entry"]


def test_a_failure_leaves_nothing_behind(tmp_path):
    with pytest.raises(ZeroDivisionError):
        load_or_create(tmp_path, "entry", lambda: {"x": np.ones(1 // 0)})
    with pytest.raises(ValueError, match="Object arrays"):
        load_or_create(tmp_path, "entry", lambda: {"good": np.ones(3), "bad": np.array([object()])})
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_refused_with_the_cure(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"task\.data\.cache=DIR or RAYSIM_CACHE"):
        load_or_create(tmp_path / "file", "entry", lambda: {"x": np.ones(3)})


def test_a_full_disk_is_refused_with_the_folder(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(ConfigError, match=f"{tmp_path}: No space left"):
        load_or_create(tmp_path, "entry", lambda: {"x": np.ones(3)})
    assert os.listdir(tmp_path) == []


def test_a_damaged_entry_is_named(tmp_path):
    load_or_create(tmp_path, "entry", lambda: {"x": np.ones(3)})
    (tmp_path / "entry" / "x.npy").write_bytes(b"")
    with pytest.raises(ConfigError, match=f"{tmp_path}/entry is damaged .*remove that folder"):
        load_or_create(tmp_path, "entry", lambda: {"x": np.ones(3)})


def test_cache_keys_depend_only_on_the_value():
    assert cache_key({"a": 1, "b": [2]}) == cache_key({"b": [2], "a": 1}) != cache_key({"a": 1, "b": [3]})


def test_a_fingerprint_changes_with_the_file(tmp_path):
    path = tmp_path / "image"
    path.write_text("one")
    before = fingerprint(str(path))
    os.utime(path, (1, 1))
    assert fingerprint(str(path)) != before
    with fsspec.open("memory://cache/image", "w") as file:
        file.write("two")
    assert fingerprint("memory://cache/image") == fingerprint("memory://cache/image")
    with pytest.raises(ConfigError, match="nowhere"):
        fingerprint(str(tmp_path / "nowhere"))


def test_the_folder_is_the_given_one_else_that_of_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("RAYSIM_CACHE", str(tmp_path / "b"))
    assert cache_folder(str(tmp_path / "a")) == tmp_path / "a"
    assert cache_folder() == tmp_path / "b"
    monkeypatch.delenv("RAYSIM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "raysim"


def entry(folder, value, age):
    """The key of an entry of 1 MB that was used `age` seconds ago."""
    key = cache_key(value)
    load_or_create(folder, key, lambda: {"array": np.zeros(125_000)})
    used = (folder / key).stat().st_mtime - age
    os.utime(folder / key, (used, used))
    return key


def test_the_entries_that_were_not_used_for_the_longest_time_are_removed(tmp_path):
    old, new, mine = entry(tmp_path, "old", 300), entry(tmp_path, "new", 200), entry(tmp_path, "mine", 400)
    (tmp_path / "other").mkdir()
    limit_cache(tmp_path, [mine], 0.0035)
    assert (tmp_path / old).exists()
    load_or_create(tmp_path, old, dict)  # used again, so `new` is removed
    limit_cache(tmp_path, [mine], 0.0025)
    assert {path.name for path in tmp_path.iterdir()} == {mine, old, "other"}
    assert not (tmp_path / new).exists()


def test_a_run_that_needs_more_than_the_limit_is_refused(tmp_path):
    keys = [entry(tmp_path, "a", 0), entry(tmp_path, "b", 0)]
    with pytest.raises(
        ConfigError, match=r"task.data.cache_limit=0.0015: .* take 0.002 GB or more; set a larger limit"
    ):
        limit_cache(tmp_path, keys, 0.0015)
    assert all((tmp_path / key).exists() for key in keys)
