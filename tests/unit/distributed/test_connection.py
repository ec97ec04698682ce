"""The token is sent only where the user wants it: RAY_AUTH_MODE, and the user who has started the Ray of `auto`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raysim.core.errors import PlacementError
from tests.support.fake_head import fake_head

SECRET = "0123456789abcdef"


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", SECRET)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize(
    ("mode", "required", "message"),
    [
        ("token", False, "RAY_AUTH_MODE=token, but it accepts clients without a token; .*unset RAY_AUTH_MODE"),
        ("disabled", True, "it requires a token, and RAY_AUTH_MODE=disabled sends none; .*unset RAY_AUTH_MODE"),
    ],
)
def test_a_ray_that_contradicts_the_users_mode_is_refused_and_sees_no_token(
    mode: str, required: bool, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raysim.distributed.connection import connect

    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with fake_head(required) as head, pytest.raises(PlacementError, match=message), connect(head.address):
        pass
    assert head.tokens == []
    assert os.environ["RAY_AUTH_MODE"] == mode


def test_the_users_who_name_an_address_own_the_file_of_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from raysim.distributed.ray_compat import users_naming

    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    file = tmp_path / "ray" / "ray_current_cluster"
    file.parent.mkdir()
    file.write_text("10.9.8.7:6379\n")
    assert users_naming("10.9.8.7:6379") == {os.getuid()}
    assert users_naming("10.9.8.7:6380") == set()
    file.rename(tmp_path / "moved")
    file.symlink_to(tmp_path / "moved")  # the owner of the link, not of the file, names it
    assert users_naming("10.9.8.7:6379") == set()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can create a file of another user")
def test_an_address_that_another_user_has_written_is_not_named_by_this_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from raysim.distributed.ray_compat import users_naming

    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    file = tmp_path / "ray" / "ray_current_cluster"
    file.parent.mkdir()
    file.write_text("10.9.8.7:6379")
    os.chown(file, 12345, 12345)
    assert users_naming("10.9.8.7:6379") == {12345}
