"""The private APIs of Ray that raysim uses: each still exists and returns the expected value."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import ray

from raysim.distributed import ray_compat
from raysim.distributed.node_probe import token_file

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_started")]


def gcs_address() -> str:
    return str(ray.get_runtime_context().gcs_address)


def test_resolve_auto_address_finds_the_running_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", gcs_address())
    assert ray_compat.resolve_auto_address() == gcs_address()


def test_reload_ray_settings_keeps_the_connection() -> None:
    ray_compat.reload_ray_settings()
    assert ray.get(ray.put(1)) == 1


def test_accepts_token_of_this_user() -> None:
    path = token_file(os.environ, Path.home())
    token = path.read_text().strip() if path.is_file() else ""  # then Ray requires no token
    assert ray_compat.accepts_token(gcs_address(), token, timeout_s=10)


def test_started_here_is_true_only_for_the_ray_of_this_process() -> None:
    assert ray_compat.started_here()
    assert not ray.get(ray.remote(ray_compat.started_here).remote())


def test_is_head_of_the_only_node() -> None:
    assert [ray_compat.is_head(node) for node in ray.nodes()] == [True]


def test_session_directory_is_that_of_this_ray() -> None:
    (node,) = ray.nodes()
    expected = Path(str(ray.init(ignore_reinit_error=True).address_info["session_dir"]))
    assert ray_compat.session_directory(node).resolve() == expected.resolve()


def test_raylet_pid_is_a_raylet() -> None:
    pid = ray.get(ray.remote(ray_compat.raylet_pid).remote())
    assert "raylet" in Path(f"/proc/{pid}/cmdline").read_text().partition("\0")[0]
    assert pid != os.getpid()


def test_pending_node_count_is_unknown_without_an_autoscaler() -> None:
    assert ray_compat.pending_node_count() in (None, 0)


def test_a_missing_job_agent_is_distinguished_from_other_errors() -> None:
    answer = "Request failed with status code 500: No available agent to submit job, please try again later."
    assert ray_compat.lacks_job_agent(RuntimeError(answer))
    assert not ray_compat.lacks_job_agent(RuntimeError("Request failed with status code 404: job does not exist"))
