"""The Ray of a command: one that is joined, with its token, or one of its own."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path

import grpc
import ray
from ray._private.services import canonicalize_bootstrap_address_or_die

from raysim.core.errors import PlacementError
from raysim.distributed.node_probe import token_file

KNOCK = 10.0  # seconds for the head of a cluster to answer
MODE = "RAY_AUTH_MODE"  # the variable that says whether Ray shows its token


@contextmanager
def connect(address: str | None) -> Iterator[str]:
    """Ray, joined or started, with its dashboard's address; a Ray that was started here ends with the block."""
    if ray.is_initialized() and address is None:  # a notebook's, say
        yield str(ray._private.worker.get_dashboard_url() or "")
        return
    asked = address or os.environ.get("RAY_ADDRESS")
    own = not asked
    try:
        handler = signal.getsignal(signal.SIGTERM)
        with _token_mode(asked) if asked else nullcontext():
            context = ray.init(address="local" if own else asked, logging_level=logging.ERROR)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray's own would end the process at once
    except Exception as error:  # Ray raises what it likes here, a bare Exception too
        far = "; from a machine that is no node of it: raysim submit" if "node info" in str(error).lower() else ""
        raise PlacementError(f"cannot {'start Ray' if own else f'join Ray at {asked}'}: {error}{far}") from error
    try:
        yield str(context.dashboard_url or "")
    finally:
        ray.shutdown()


@contextmanager
def _token_mode(address: str) -> Iterator[None]:
    """Ray shows its token in the block if the one at HOST:PORT or auto wants it, and only then.

    Of itself Ray goes by the address: it shows none to HOST:PORT, and one to auto, even to a Ray that wants none and
    then has no way to answer. Raises OSError if nobody is there, where Ray would go on trying for minutes, and
    PermissionError if it is the wrong token, which Ray tells late.
    """
    if "://" in address:
        raise ValueError("expected HOST:PORT of its head, or auto; a dashboard's URL is for raysim submit --address")
    if address == "auto":
        address = canonicalize_bootstrap_address_or_die(address)
    host, colon, port = address.rpartition(":")
    if ray.is_initialized() or not (colon and port.isdigit()):  # which Ray itself tells
        yield
        return
    socket.create_connection((host, int(port)), timeout=KNOCK).close()
    if wanted := not accepts_token(address):
        _check_token(address)
    before = os.environ.get(MODE)
    os.environ[MODE] = "token" if wanted else "disabled"
    import_module("ray._raylet").Config.initialize("")  # it has read that when it was imported
    try:
        yield
    finally:  # a Ray that comes after this one may want it otherwise
        os.environ.pop(MODE)
        os.environ.update({MODE: before} if before is not None else {})


def _check_token(address: str) -> None:
    """Raises PermissionError if the Ray at HOST:PORT does not take the token that there is."""
    environ = os.environ
    path = token_file(environ, Path.home())
    token = environ.get("RAY_AUTH_TOKEN") or (path.read_text().strip() if path.is_file() else "")
    if not token or not accepts_token(address, token):
        where = "RAY_AUTH_TOKEN" if environ.get("RAY_AUTH_TOKEN") else path
        said = f"it does not take the token in {where}" if token else f"it wants a token, and {path} holds none"
        raise PermissionError(f"{said}; copy its own, of the user who started it, to there")


def accepts_token(address: str, token: str = "") -> bool:
    """Whether the Ray at HOST:PORT lets in who shows this token, or none; so does one that says nothing in time."""
    with grpc.insecure_channel(address) as channel:
        try:
            ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
            ask(b"", timeout=KNOCK, metadata=[("authorization", f"Bearer {token}")] if token else [])
        except grpc.RpcError as error:
            return bool(error.code() != grpc.StatusCode.UNAUTHENTICATED)
    return True
