"""Bundles of results from a cluster: without checkpoints, and unpacked only into their folder."""

from __future__ import annotations

import gzip
import io
import tarfile
from base64 import encodebytes
from pathlib import Path

import pytest

from raysim.core.errors import RunError
from raysim.distributed import artifact_bundle


def sent(*members: tuple[str, bytes]) -> str:
    """The output of a cluster with a bundle of these files."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return f"noise\n{artifact_bundle.BEGIN}\n{encodebytes(held.getvalue()).decode()}{artifact_bundle.END}\n"


def test_a_bundle_is_unpacked_only_into_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact_bundle, "MAX_BYTES", 1000)
    with pytest.raises(RunError, match="cannot be read"):
        artifact_bundle.unpack(sent(("../outside", b"x")), tmp_path / "up")
    artifact_bundle.unpack(sent((str(tmp_path / "outside"), b"x")), tmp_path / "into")
    with pytest.raises(RunError, match="more than 1000 bytes"):
        artifact_bundle.unpack(sent(("zeros", bytes(10_000))), tmp_path / "bomb")
    assert not (tmp_path / "outside").exists()
    assert not (tmp_path / "bomb").exists()


def test_a_bundle_contains_no_checkpoints(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "large").touch()
    (run / "summary.json").write_text("{}")
    artifact_bundle.unpack(artifact_bundle.pack(run), tmp_path / "here")
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["summary.json"]
    with pytest.raises(RunError, match="no results"):
        artifact_bundle.unpack("nothing", tmp_path / "there")


def test_the_bundle_of_a_search_contains_no_checkpoints_of_trials(tmp_path: Path) -> None:
    from raysim.distributed.artifact_bundle import pack, unpack

    held = tmp_path / "search" / "trials" / "0001"
    (held / "checkpoints" / "round_0001").mkdir(parents=True)
    (held / "checkpoints" / "round_0001" / "model.safetensors").write_bytes(b"0" * 100)
    (held / "trial.json").write_text("{}")
    unpack(pack(tmp_path / "search"), tmp_path / "back")
    assert sorted(path.name for path in (tmp_path / "back").rglob("*")) == ["0001", "trial.json", "trials"]


def test_too_many_members_and_too_much_text_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact_bundle, "MAX_MEMBERS", 2)
    with pytest.raises(RunError, match="more than 2 files and folders"):
        artifact_bundle.unpack(sent(*((name, b"") for name in "abc")), tmp_path / "many")
    monkeypatch.setattr(artifact_bundle, "MAX_TEXT", 100)
    with pytest.raises(RunError, match="characters; at most 100 are fetched"):
        artifact_bundle.unpack(sent(("a", b"x")), tmp_path / "long")
    assert list(tmp_path.iterdir()) == []


def test_a_header_that_claims_much_memory_is_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 2**30
    packed = gzip.compress(header.tobuf() + bytes(1000))
    text = f"{artifact_bundle.BEGIN}\n{encodebytes(packed).decode()}{artifact_bundle.END}"
    with pytest.raises(RunError, match="cannot be read: a header claims"):
        artifact_bundle.unpack(text, tmp_path / "pax")


@pytest.mark.parametrize("packed", [b"not gzip", gzip.compress(b"x" * 600, mtime=0)])
def test_a_damaged_bundle_is_refused(packed: bytes, tmp_path: Path) -> None:
    text = f"{artifact_bundle.BEGIN}\n{encodebytes(packed).decode()}{artifact_bundle.END}"
    with pytest.raises(RunError, match="cannot be read"):
        artifact_bundle.unpack(text, tmp_path / "bad")
