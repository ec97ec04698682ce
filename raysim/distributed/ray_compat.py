"""Every private API of Ray that raysim uses, one function each. Ray has no public API for them."""

from __future__ import annotations

import os
import signal
import stat
import threading
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import grpc
import ray
from ray._common.utils import get_ray_address_file
from ray._private.services import canonicalize_bootstrap_address_or_die, resolve_ip_for_localhost
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.autoscaler.v2.utils import is_autoscaler_v2


def resolve_auto_address() -> str:
    """HOST:PORT of the Ray that the address `auto` selects. Raises ConnectionError if there is none.

    `ray.init("auto")` also resolves it, but only while it connects, and the token mode must be set before that. It
    reads a file that every user of the machine can write, and the command lines of all processes. Raises
    PermissionError if neither this user nor root named the address.
    """
    address = str(canonicalize_bootstrap_address_or_die("auto"))
    given = os.environ.get("RAY_ADDRESS") or "auto"
    if given == "auto" and not {os.getuid(), 0} & users_naming(address):
        raise PermissionError(
            f"another user of this machine has started the Ray at {address}, which auto selects; if you trust that "
            f"user with your token and your data, give the address: ray_address={address}, or --address {address}"
        )
    return address


def users_naming(address: str) -> set[int]:
    """The users who own the file with this address, or a raylet with it on its command line."""
    psutil: Any = import_module("psutil")  # installed with Ray
    users = set[int]()
    file = Path(get_ray_address_file(None))
    with suppress(OSError):
        info = file.lstat()
        if stat.S_ISREG(info.st_mode) and _same_address(file.read_text().strip(), address):
            users.add(info.st_uid)
    for process in psutil.process_iter(["uids", "cmdline"]):
        arguments = " ".join(process.info["cmdline"] or ()).split()
        named = [each.partition("=")[2] for each in arguments if each.startswith("--gcs-address=")]
        if process.info["uids"] and any(_same_address(each, address) for each in named):
            users.add(process.info["uids"].real)
    return users


def end_at_sigterm() -> None:
    """Let SIGTERM end this process of Ray at once, as SIGKILL does.

    Ray's handler raises SystemExit in the running call, which would be recorded as an error of the method or of a site.
    Ray sends SIGTERM to the processes of a command that was killed, and of a node that stops.
    """
    if threading.current_thread() is threading.main_thread():  # other threads cannot receive the exception
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _same_address(given: str, resolved: str) -> bool:
    """Whether HOST:PORT `given` is `resolved`, in which Ray replaces the loopback address by that of the node."""
    host, _, port = given.rpartition(":")
    return given == resolved or (host != "" and f"{resolve_ip_for_localhost(host)}:{port}" == resolved)


def reload_ray_settings() -> None:
    """Make Ray read its environment variables again: it reads RAY_AUTH_MODE once, when it is imported."""
    import_module("ray._raylet").Config.initialize("")


def accepts_token(address: str, token: str, timeout_s: float) -> bool:
    """Whether the Ray at HOST:PORT accepts this token, or none if it is empty; True too if it does not answer in time.

    `ray.init` reports a wrong token only after minutes of retries. This call needs no connected Ray.
    """
    with grpc.insecure_channel(address) as channel:
        try:
            check_alive = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
            check_alive(b"", timeout=timeout_s, metadata=[("authorization", f"Bearer {token}")] if token else [])
        except grpc.RpcError as error:
            return bool(error.code() != grpc.StatusCode.UNAUTHENTICATED)
    return True


def started_here() -> bool:
    """Whether this process has started the Ray that it uses, instead of joining one.

    The context that `ray.init` returns does not contain this, and another caller may have called `ray.init`.
    """
    node: Any = ray._private.worker._global_node
    return node is not None and bool(node.is_head())


def is_head(node: Mapping[str, Any]) -> bool:
    """Whether this entry of `ray.nodes()` is the head: `ray.util.state.list_nodes` needs a dashboard."""
    return "node:__internal_head__" in node["Resources"]


def session_directory(node: Mapping[str, Any]) -> Path:
    """Ray's session directory on this node of `ray.nodes()`, derived from the path of its object store's socket."""
    return Path(node["ObjectStoreSocketName"]).parent.parent


def raylet_pid() -> int:
    """The process id of this node's raylet, from within a task: killing it kills the node."""
    return int(os.environ["RAY_RAYLET_PID"])


def pending_node_count() -> int | None:
    """The number of nodes that the autoscaler is starting; None for its first version, which does not report it.

    `ray status` prints it, and no public function returns it.
    """
    if not is_autoscaler_v2():
        return None
    status = get_cluster_status(ray.get_runtime_context().gcs_address, timeout=2)
    return len(status.pending_nodes) + sum(launch.count for launch in status.pending_launches)


def is_no_node(error: Exception) -> bool:
    """Whether `ray.init` failed because this machine is not a node of the cluster.

    Ray raises a RuntimeError or an exception type of Ray, depending on the step that fails.
    """
    return "node info" in str(error).lower()


def lacks_job_agent(error: Exception) -> bool:
    """Whether a cluster refused a job because no agent of its head accepts jobs (yet).

    The dashboard answers only with text: its client raises the same RuntimeError for every refusal.
    """
    return "No available agent" in str(error)
