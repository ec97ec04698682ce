"""The folder of a run: its own from the first moment, and gone if the run is refused."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from raysim.core.errors import ConfigError
from raysim.distributed.launcher import claimed
from raysim.federation.validation import check_last_batch
from raysim.tasks.synthetic import Synthetic, SyntheticData


def test_runs_that_start_at_once_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ExitStack() as held, ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: held.enter_context(claimed(None, "fedavg-toy")), range(16)))
        assert sorted(folder.name for folder in folders) == [f"fedavg-toy-{n:03}" for n in range(1, 17)]
        for folder in folders:
            (folder / "summary.json").touch()
    assert len(list((tmp_path / "runs").iterdir())) == 16


@pytest.mark.parametrize("out", [None, "new/deep/out"])
def test_what_is_refused_leaves_nothing(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError), claimed(out, "fedavg-toy"):
        raise ConfigError("no such key")
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_stays(tmp_path):
    (tmp_path / "old").mkdir()
    with pytest.raises(ConfigError, match="never overwrites"), claimed(str(tmp_path / "old"), "x"):
        pass
    with pytest.raises(ConfigError), claimed(str(tmp_path / "old" / "new"), "x"):
        raise ConfigError("refused")
    assert list(tmp_path.rglob("*")) == [tmp_path / "old"]


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot make the run's folder"), claimed(str(tmp_path / "file" / "x"), "x"):
        pass


def test_a_last_batch_of_one_is_refused_where_the_network_cannot_train_on_it():
    data = SyntheticData(sites=2, outside=(), cases=5, size=(16, 16))
    deep = {"name": "unet", "channels": [4, 8, 16, 32, 64], "norm": "batch"}
    with pytest.raises(ConfigError, match=r"batch_size=4 leaves a last batch of one example at 'site-01' \(5 "):
        check_last_batch(Synthetic(data=data, network=deep, batch_size=4).build())
    check_last_batch(Synthetic(data=data, network=deep, batch_size=5).build())
    check_last_batch(Synthetic(data=data, batch_size=4).build())  # no batch statistics


def test_the_folder_is_a_path_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with claimed("here", "x") as folder:
        assert folder == Path(tmp_path, "here")
