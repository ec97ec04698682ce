"""The token and the folder of a local Ray belong to the user alone."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from raysim.core.errors import ConfigError
from raysim.distributed.private_files import ensure_token, local_ray_folder, private_folder, users_listening

root = pytest.mark.skipif(os.getuid() != 0, reason="only root can create a file of another user")


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty home of a user with the usual umask."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    before = os.umask(0o022)
    yield tmp_path
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_token_is_private_and_stays(home: Path) -> None:
    ensure_token()
    token = home / ".ray" / "auth_token"
    assert (mode(token.parent), mode(token), len(token.read_text())) == (0o700, 0o600, 64)
    written = token.read_text()
    ensure_token()
    assert token.read_text() == written
    assert [path.name for path in token.parent.iterdir()] == ["auth_token"]


def test_a_readable_token_is_restricted(home: Path) -> None:
    token = home / ".ray" / "auth_token"
    token.parent.mkdir(0o755)
    token.write_text("secret")
    assert mode(token) == 0o644
    ensure_token()
    assert (mode(token.parent), mode(token), token.read_text()) == (0o700, 0o600, "secret")


@pytest.mark.parametrize(("name", "value"), [("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN", "given")])
def test_no_token_is_written_if_none_is_needed(
    name: str, value: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    ensure_token()
    assert not (home / ".ray").exists()


@root
def test_the_token_of_another_user_is_refused(home: Path) -> None:
    token = home / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("known to another user")
    os.chown(token, 12345, 12345)
    with pytest.raises(ConfigError, match="belongs to user 12345, who can run code with it"):
        ensure_token()


def test_local_rays_have_a_private_folder_with_a_short_path(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(home / "r"))
    folder = local_ray_folder().parent
    assert folder == home / "r" / f"raysim-{os.getuid()}"
    assert mode(folder) == 0o700
    folder.chmod(0o777)
    assert mode(local_ray_folder().parent) == 0o700
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setattr("tempfile.tempdir", str(home / ("d" * 60)))
    assert local_ray_folder() == Path(f"/tmp/raysim-{os.getuid()}/ray")


def test_a_folder_that_is_not_the_users_is_refused(home: Path) -> None:
    (home / "file").write_text("")
    with pytest.raises(ConfigError, match="is not a folder; remove it"):
        private_folder(home / "file")


@root
def test_a_folder_or_link_of_another_user_is_refused(home: Path) -> None:
    (home / "folder").mkdir()
    os.chown(home / "folder", 12345, 12345)
    with pytest.raises(ConfigError, match="belongs to user 12345"):
        private_folder(home / "folder")
    (home / "own").mkdir()
    (home / "link").symlink_to(home / "own")
    os.lchown(home / "link", 12345, 12345)
    with pytest.raises(ConfigError, match="is not a folder"):
        private_folder(home / "link")


def test_the_user_of_a_listening_port_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert users_listening(port) == {os.getuid()}
    assert users_listening(port) == set()
