"""Files from elsewhere, made to harm: reading them runs nothing, fills nothing, and leads nowhere else."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import secrets
import subprocess
import sys
import tarfile
import time
import zipfile
from base64 import encodebytes
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from raysim.cli import artifact_bundle
from raysim.cli.main import main
from raysim.core.errors import ConfigError, RunError
from raysim.core.model import Model
from raysim.data import image_reading, table
from raysim.data.file_inspection import inspect_case
from raysim.data.table import read_table
from raysim.distributed.connection import accepts_token
from raysim.distributed.node_probe import probe
from raysim.storage import checkpoint


class Bomb:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A checkpoint of one site."""
    model = Model.of({"w": np.ones(3, np.float32)})
    return checkpoint.write(tmp_path / "checkpoints", 1, model, {"a": {"n": 1}})


def forge(path: Path, name: str, content: bytes) -> None:
    """Put another file into a checkpoint, with the sum that fits it."""
    index = json.loads((path / "checkpoint.json").read_text())
    (path / name).write_bytes(content)
    index["sha256"][name] = hashlib.sha256(content).hexdigest()
    (path / "checkpoint.json").write_text(json.dumps(index))


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
def test_a_pickle_in_a_checkpoint_is_not_opened(written: Path, name: str, tmp_path: Path) -> None:
    forge(written, name, pickle.dumps(Bomb(tmp_path / "mark")))
    with pytest.raises(RunError):
        checkpoint.read(written)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "named", ["os:system", "subprocess:Popen", "raysim.__main__:main", "raysim.storage.event_log:Log", "antigravity:x"]
)
def test_a_checkpoint_gets_no_class_but_dataclasses_of_raysim(written: Path, named: str) -> None:
    forge(written, "state.json", json.dumps({"dataclass": named, "fields": {}}).encode())
    with pytest.raises(RunError, match=r"neither raysim's|not a dataclass"):
        checkpoint.read(written, trusted=["my_algorithm"])


def test_a_checkpoint_leads_nowhere_else(written: Path, tmp_path: Path) -> None:
    index = json.loads((written / "checkpoint.json").read_text())
    (tmp_path / "outside").touch()
    for forged in ({"sites": ["../../../outside"]}, {"sha256": {str(tmp_path / "outside"): "0"}}):
        (written / "checkpoint.json").write_text(json.dumps({**index, **forged}))
        with pytest.raises(RunError, match="outside of it"):
            checkpoint.read(written)


def test_tables_that_unfold_to_more_than_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "LARGEST", 1_000_000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("table.csv", "site,split,image,label\n" + "a,train,x.png,y.png\n" * 200_000)
    assert (tmp_path / "bomb.zip").stat().st_size < 50_000
    with pytest.raises(ConfigError, match="holds more than 1,000,000 bytes"):
        read_table(f"zip://table.csv::{tmp_path / 'bomb.zip'}")
    rows = pd.DataFrame({name: ["a"] * 200_000 for name in ("site", "split", "image", "label")})
    rows.to_parquet(tmp_path / "bomb.parquet")
    assert (tmp_path / "bomb.parquet").stat().st_size < 50_000
    with pytest.raises(ConfigError, match="holds 200,000 rows of 4 columns"):
        read_table(str(tmp_path / "bomb.parquet"))


def a_volume(file: Path, shape: tuple[int, int, int]) -> Path:
    """A small file whose header promises so many voxels, and whose zeros unfold to 32 MB."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(shape)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    file.write_bytes(gzip.compress(header.binaryblock + bytes(4) + bytes(32_000_000)))
    return file


def test_images_that_promise_more_than_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    promise = a_volume(tmp_path / "promise.nii.gz", (4000, 4000, 4000))
    with pytest.raises(ConfigError, match="header promises 64,000,000,000 voxels"):
        image_reading.read(str(promise))
    assert "header promises 64,000,000,000 voxels" in inspect_case(str(promise), None).problems[0]
    monkeypatch.setattr(probe, "LARGEST", 1_000_000)
    small = a_volume(tmp_path / "small.nii.gz", (10, 10, 10))
    assert image_reading.read(str(small)).space == (10, 10, 10)
    assert "unfolds to more than 1,000,000 bytes" in inspect_case(str(small), None).problems[0]
    picture = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(picture, "PNG")
    (tmp_path / "wide.png").write_bytes(picture.getvalue())
    with pytest.raises(ConfigError, match="exceeds limit"):
        image_reading.read(str(tmp_path / "wide.png"))


@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
def test_a_pickle_for_a_table_is_not_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    with pytest.raises(ConfigError):
        read_table(str(tmp_path / name))
    assert not (tmp_path / "mark").exists()


def sent(*members: tuple[str, bytes]) -> str:
    """What a cluster would send: a parcel of these files."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return f"noise\n{artifact_bundle.BEGIN}\n{encodebytes(held.getvalue()).decode()}{artifact_bundle.END}\n"


def test_what_a_cluster_sends_stays_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact_bundle, "LARGEST", 1000)
    with pytest.raises(RunError, match="cannot be read"):
        artifact_bundle.unpack(sent(("../outside", b"x")), tmp_path / "up")
    artifact_bundle.unpack(sent((str(tmp_path / "outside"), b"x")), tmp_path / "into")
    with pytest.raises(RunError, match="more than 1000 bytes"):
        artifact_bundle.unpack(sent(("zeros", bytes(10_000))), tmp_path / "bomb")
    assert not (tmp_path / "outside").exists()
    assert not (tmp_path / "bomb").exists()


def test_a_parcel_brings_all_but_the_checkpoints(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "large").touch()
    (run / "summary.json").write_text("{}")
    artifact_bundle.unpack(artifact_bundle.pack(run), tmp_path / "here")
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["summary.json"]
    with pytest.raises(RunError, match="no results"):
        artifact_bundle.unpack("nothing", tmp_path / "there")


@pytest.mark.parametrize("user", ["me:s3cret", "s3cret"])
def test_a_password_in_a_url_is_refused_before_it_is_written(
    user: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    word = f"task.data.table=https://{user}@store/table.csv"
    assert main(["run", "task=tabular", word, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "must not carry a password" in said
    assert "s3cret" not in said
    assert not (tmp_path / "run").exists()


HEAD = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
print("address", cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.mark.ray
def test_a_wrong_token_is_told_in_one_line_and_the_right_one_nowhere(tmp_path: Path) -> None:
    right, wrong = secrets.token_hex(32), secrets.token_hex(32)
    seen = list[str]()  # of the list of processes, while the commands are at work
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": right}

    def run(address: str, token: str) -> Any:
        words = ["run", "rounds=1", "task.data.sites=2", f"ray_address={address}", "--out", str(tmp_path / token[:8])]
        line = [sys.executable, "-m", "raysim", *words]
        # That a token is wanted, the command finds out.
        given = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
        given["RAY_AUTH_TOKEN"] = token
        process = subprocess.Popen(line, env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while process.poll() is None:
            time.sleep(0.5)
            seen.append(subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True).stdout)
        return subprocess.CompletedProcess(line, process.returncode, *process.communicate())

    with subprocess.Popen([sys.executable, "-c", HEAD], env=env, **pipes) as head:
        assert head.stdout
        assert head.stdin
        address = next(line.split()[1] for line in head.stdout if line.startswith("address "))
        assert (accepts_token(address), accepts_token(address, wrong), accepts_token(address, right)) == (
            False,
            False,
            True,
        )
        refused, played = run(address, wrong), run(address, right)
        head.stdin.close()
    assert (refused.returncode, played.returncode) == (3, 0), refused.stderr + played.stderr
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("raysim: ")]
    assert f"cannot join Ray at {address}: it does not take the token in RAY_AUTH_TOKEN" in line
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / wrong[:8]).exists()
    assert "ray::" in "".join(seen)
    files = [path for path in (tmp_path / right[:8]).rglob("*") if path.is_file()]
    written = "".join(path.read_bytes().decode(errors="replace") for path in files)
    for text in (refused.stdout + refused.stderr, played.stdout + played.stderr, "".join(seen), written):
        assert right not in text
        assert wrong not in text


JOIN = """
import sys
import ray
from raysim.distributed.connection import ray_running
for address in sys.argv[1:]:
    with ray_running(address):
        print(ray.get(ray.remote(lambda: "answered").options(num_cpus=0).remote()))
"""


@pytest.mark.ray
def test_a_process_joins_rays_with_a_token_and_without_one_after_the_other() -> None:
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    env = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
    env["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    words, addresses = [sys.executable, "-c", HEAD], []
    with ExitStack() as held:
        for mode in ("disabled", "token"):
            head = held.enter_context(subprocess.Popen(words, env={**env, "RAY_AUTH_MODE": mode}, **pipes))
            held.callback(head.stdin.close)
            addresses.append(next(line.split()[1] for line in head.stdout if line.startswith("address ")))
        line = [sys.executable, "-c", JOIN, addresses[0], addresses[1], addresses[0]]
        done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=150, check=False)
    assert done.stdout.split() == ["answered"] * 3, done.stdout + done.stderr
