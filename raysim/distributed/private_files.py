"""What only the user may use: the file of Ray's token, and the temporary folder of a local Ray; the users of ports.

Does not import Ray.
"""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from raysim.core.errors import ConfigError
from raysim.distributed.node_probe import token_file

MAX_FOLDER_BYTES = 36  # the path of a socket has at most 107 bytes, and 70 of them follow the private folder
LISTENING = "0A"  # state of a socket in /proc/net/tcp


def ensure_token() -> None:
    """Make sure that a local Ray finds a token that only this user can read; creates one if there is none.

    Ray would create the file with the permissions of the umask. Does nothing if RAY_AUTH_MODE turns the token off or
    RAY_AUTH_TOKEN contains it. Raises ConfigError for a file of another user.
    """
    environ = os.environ
    if environ.get("RAY_AUTH_MODE", "token").lower() != "token" or environ.get("RAY_AUTH_TOKEN"):
        return
    path = token_file(environ, Path.home())
    if not environ.get("RAY_AUTH_TOKEN_PATH"):
        private_folder(path.parent)
        _create_token(path)
    restrict_token(path)


def _create_token(path: Path) -> None:
    """Write a new token to `path` unless the file exists. Another process sees no file or a complete one."""
    if path.exists():
        return
    with tempfile.NamedTemporaryFile("w", dir=path.parent) as file:  # mode 600
        file.write(secrets.token_hex(32))  # as Ray does
        file.flush()
        with suppress(FileExistsError):
            os.link(file.name, path)


def restrict_token(path: Path) -> None:
    """Remove the permissions of other users on the token file, if there is one.

    Raises ConfigError if it belongs to another user, who knows the token then, or if it stays readable.
    """
    if not path.is_file():
        return
    info = path.stat()
    if info.st_uid not in (os.getuid(), 0):
        raise ConfigError(
            f"the token file {path} belongs to user {info.st_uid}, who can run code with it; remove it, or set "
            "RAY_AUTH_TOKEN_PATH to a file of your own"
        )
    if info.st_uid == os.getuid():
        _restrict(path, 0o600)


def private_folder(path: Path) -> None:
    """Create the folder, or restrict an existing one, so that only this user can use it.

    Raises ConfigError if it belongs to another user, is not a folder, or stays accessible.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        path.mkdir(0o700)
    info = path.lstat()
    if not stat.S_ISDIR(info.st_mode) and not (path.is_dir() and info.st_uid == os.getuid()):
        raise ConfigError(f"{path} is not a folder; remove it")
    if path.stat().st_uid != os.getuid():
        raise ConfigError(f"the folder {path} belongs to user {path.stat().st_uid}; ask that user to remove it")
    _restrict(path, 0o700)


def _restrict(path: Path, mode: int) -> None:
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        path.chmod(mode)
    if stat.S_IMODE(found := path.stat().st_mode) & 0o077:
        raise ConfigError(
            f"other users can use {path} (mode {stat.S_IMODE(found):o}), and its file system keeps this mode; move "
            "your home folder, or set RAY_AUTH_TOKEN_PATH and RAY_TMPDIR to a file and a folder on another disk"
        )


def local_ray_folder() -> Path:
    """The temporary folder of this user's local Rays, in a folder of mode 700: Ray opens its own folder to all users.

    It is below RAY_TMPDIR or TMPDIR; below /tmp if the path of TMPDIR is too long for Ray's sockets.
    """
    name = f"raysim-{os.getuid()}"
    folder = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()).absolute() / name
    if len(os.fsencode(folder)) > MAX_FOLDER_BYTES and not os.environ.get("RAY_TMPDIR"):
        folder = Path("/tmp") / name
    private_folder(folder)
    return folder / "ray"


def users_listening(port: int) -> set[int]:
    """The users whose processes accept connections to `port` on this machine's loopback; empty if Linux cannot tell."""
    users = set[int]()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                _, local, _, state, _, _, _, user, *_ = line.split()
                if state == LISTENING and int(local.rpartition(":")[2], 16) == port:
                    users.add(int(user))
    return users
