"""Connects a command to Ray: joins a cluster, with its token, or starts a local Ray that ends with the command."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from raysim.core.errors import PlacementError
from raysim.distributed import early_start, ray_compat
from raysim.distributed.local_ray import target_address
from raysim.distributed.node_probe import token_file
from raysim.distributed.private_files import ensure_token, local_ray_folder, restrict_token
from raysim.distributed.timeouts import HEAD_REPLY_TIMEOUT_S

TOKEN_MODE_VARIABLE = "RAY_AUTH_MODE"  # whether Ray sends its token


@contextmanager
def connect(address: str | None) -> Iterator[str]:
    """Join or start Ray for the block. Yields the address of its dashboard, empty if there is none.

    `address` is HOST:PORT or auto. If it is None, uses RAY_ADDRESS, the Ray that this process already uses, or a new
    local Ray. Raises PlacementError if Ray cannot be joined or started.
    """
    started_early = early_start.is_started()
    if ray.is_initialized() and not started_early:
        yield _present_ray(address)
        return
    mode = os.environ.get(TOKEN_MODE_VARIABLE)
    context = _open(target_address(address), started_early)
    try:
        yield str(context.dashboard_url or "")
    finally:
        if started_early:  # `mode` may be the one that Ray has set, but the next Ray of this command is a local one too
            early_start.stop()
        else:
            ray.shutdown()
            _set_token_mode(mode)  # a local Ray sets it, and the next Ray of this process may require the other mode


def _present_ray(address: str | None) -> str:
    """The dashboard of the Ray that this process already uses, for example in a notebook."""
    if address is None:
        return str(ray.init(ignore_reinit_error=True, logging_level=logging.ERROR).dashboard_url or "")
    raise PlacementError(
        f"cannot join Ray at {address}: this process already uses the Ray at "
        f"{ray.get_runtime_context().gcs_address}; remove ray_address to use that one, or call ray.shutdown() first"
    )


def _open(target: str | None, started_early: bool) -> Any:
    """The context of the Ray at `target`, of the one that was started early, or of a new local one."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if started_early:
            return early_start.result()
        return _join(target) if target else start_local_ray()
    except Exception as error:  # Ray raises many types here, also a bare Exception
        cure = "; from a machine outside the cluster use raysim submit" if ray_compat.is_no_node(error) else ""
        if isinstance(error, ConnectionError):
            cure = "; check the address, and that the head is up (ray status)"
        action = f"join Ray at {target}" if target else "start Ray"
        raise PlacementError(f"cannot {action}: {error}{cure}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray's handler would end the process at once


def start_local_ray() -> Any:
    """Start a local Ray: its token, and the folder of its sessions, belong to this user alone."""
    ensure_token()
    return ray.init(address="local", logging_level=logging.ERROR, _temp_dir=str(local_ray_folder()))


def _join(address: str) -> Any:
    with _token_mode(address) as resolved:
        return ray.init(address=resolved, logging_level=logging.ERROR)


def connected_message(dashboard: str) -> str:
    """The message after `connect`, with the URL of the dashboard at this address (empty if there is none)."""
    if not dashboard:
        return "Ray is up. Dashboard: none"
    return f"Ray is up. Dashboard: http://{dashboard} (token: run `ray get-auth-token`)"


@contextmanager
def _token_mode(address: str) -> Iterator[str]:
    """In the block, Ray sends its token if and only if the Ray at HOST:PORT or auto requires one. Yields HOST:PORT.

    By default Ray sends no token to HOST:PORT, and sends one to auto, although a Ray that requires no token cannot
    answer then. Raises OSError if nothing listens at the address (Ray itself would retry for minutes), and
    PermissionError for a wrong token (Ray itself reports it late), for a Ray that contradicts RAY_AUTH_MODE, and for
    auto if another user has started the Ray.
    """
    if "://" in address:
        raise ValueError("expected HOST:PORT of the head, or auto; the dashboard's URL is for raysim submit --address")
    if address == "auto":
        address = ray_compat.resolve_auto_address()
    host, colon, port = address.rpartition(":")
    if ray.is_initialized() or not (colon and port.isdigit()):  # `ray.init` reports both
        yield address
        return
    socket.create_connection((host, int(port)), timeout=HEAD_REPLY_TIMEOUT_S).close()
    before = os.environ.get(TOKEN_MODE_VARIABLE)
    required = not accepts_token(address)
    _check_mode(before, required)
    if required:
        _check_token(address)
    _set_token_mode("token" if required else "disabled")
    ray_compat.reload_ray_settings()
    try:
        yield address
    finally:
        _set_token_mode(before)


def _set_token_mode(mode: str | None) -> None:
    os.environ.pop(TOKEN_MODE_VARIABLE, None)
    os.environ.update({TOKEN_MODE_VARIABLE: mode} if mode is not None else {})


def _check_mode(mode: str | None, required: bool) -> None:
    """Raises PermissionError if the user's RAY_AUTH_MODE contradicts what the Ray requires."""
    mode = (mode or "").lower()
    if mode == "token" and not required:
        raise PermissionError(
            f"RAY_AUTH_MODE=token, but it accepts clients without a token; if you trust it: unset {TOKEN_MODE_VARIABLE}"
        )
    if mode == "disabled" and required:
        raise PermissionError(
            f"it requires a token, and RAY_AUTH_MODE=disabled sends none; to send yours: unset {TOKEN_MODE_VARIABLE}"
        )


def _check_token(address: str) -> None:
    """Raises PermissionError if the Ray at HOST:PORT rejects the token of this user."""
    environ = os.environ
    path = token_file(environ, Path.home())
    if not environ.get("RAY_AUTH_TOKEN"):
        restrict_token(path)
    token = environ.get("RAY_AUTH_TOKEN") or (path.read_text().strip() if path.is_file() else "")
    if not token or not accepts_token(address, token):
        source = "RAY_AUTH_TOKEN" if environ.get("RAY_AUTH_TOKEN") else path
        fault = f"it rejects the token in {source}" if token else f"it requires a token, but {path} contains none"
        raise PermissionError(f"{fault}; copy the token of the user who started this Ray to {source}")


def accepts_token(address: str, token: str = "") -> bool:
    """Whether the Ray at HOST:PORT accepts this token (empty: none); True too if it does not answer in time."""
    return ray_compat.accepts_token(address, token, HEAD_REPLY_TIMEOUT_S)
