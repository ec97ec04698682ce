"""Verdicts of the doctor for given facts, without a cluster."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raysim.core.registry import task_class
from raysim.data.required_paths import required_paths
from raysim.distributed import node_checks, node_probe
from raysim.distributed.cluster_checks import node_report
from raysim.distributed.node_checks import Check, NodeReport

GB = 10**9


def facts(**given: Any) -> dict[str, Any]:
    usual = {"versions": {"torch": "2.6"}, "cuda": None, "gpus": [], "fault": "", "unreadable": {}, "unwritable": {}}
    return usual | {"disk": (100 * GB, 10 * GB, 90 * GB), "shm": 10 * GB, "listens": ["127.0.0.1"]} | given


def seen(name: str = "x", **given: Any) -> NodeReport:
    return NodeReport(name, 4, 0, 8 * GB, 2 * GB, facts(**given))


def test_versions_that_differ_are_named_with_their_node() -> None:
    own = {"torch": "2.7", "numpy": "2.0"}
    other = {"x": {"torch": "2.7", "numpy": "2.0"}, "y": {"torch": "2.6"}}
    assert node_probe.differences(own, other) == {"y": {"torch": "2.6", "numpy": "missing"}}
    checks = list(node_checks.of_versions({name: {"versions": of} for name, of in other.items()}, own))
    assert [check.verdict for check in checks] == ["ok", "wrong"]
    assert checks[1].found == "y: torch 2.6 (here 2.7), numpy missing (here 2.0)"


def test_a_node_that_does_not_answer_is_named() -> None:
    late = node_report("10.0.0.7", {"CPU": 4.0}, None, ready=False)
    (check,) = node_checks.of_nodes([late])
    assert (check.verdict, check.found) == (
        "wrong",
        "10.0.0.7: 4 CPU, 0 GPU, 0 B memory; no answer within 20 s",
    )
    assert not list(node_checks.of_gpus([late]))


@pytest.mark.parametrize(
    ("declared", "found", "verdict"), [(2, 0, "wrong"), (1, 1, "ok"), (0, 1, "note"), (0, 0, "ok"), (2, 1, "wrong")]
)
def test_gpus_that_ray_and_torch_do_not_agree_on(declared: int, found: int, verdict: str) -> None:
    node_seen = NodeReport("x", 4, declared, 8 * GB, 0, facts(gpus=[("H100", 80 * GB)] * found))
    assert [check.verdict for check in node_checks.of_gpus([node_seen])] == [verdict]
    assert len(node_seen.usable) == min(declared, found)


@pytest.mark.parametrize(
    ("listens", "own", "verdict"),
    [
        (["127.0.0.1", "::1"], True, "ok"),
        (["0.0.0.0"], True, "wrong"),
        (["10.1.2.3"], False, "note"),
        (["::"], False, "note"),
        (None, True, "note"),
    ],
)
def test_a_local_ray_is_not_open_to_the_network(listens: Any, own: bool, verdict: str) -> None:
    (check,) = node_checks.of_listening({"x": facts(listens=listens)}, own)
    assert check.verdict == verdict


def test_an_ipv4_address_mapped_into_ipv6_is_shown_as_ipv4() -> None:
    assert [node_probe.plain_address(of) for of in ("::ffff:127.0.0.1", "::", "10.0.0.1")] == [
        "127.0.0.1",
        "::",
        "10.0.0.1",
    ]


def test_a_token_is_found_and_never_shown(tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    token = tmp_path / ".ray" / "auth_token"
    token.write_text("s3cret")
    token.chmod(0o644)
    not_required = node_checks.of_token({"RAY_AUTH_TOKEN": "s3cret"}, tmp_path, open_to_all=True)
    assert (not_required.verdict, not_required.found[:3]) == ("note", "off")
    readable = node_checks.of_token({}, tmp_path, open_to_all=False)
    token.chmod(0o600)
    mine = node_checks.of_token({}, tmp_path, open_to_all=False)
    given = node_checks.of_token({"RAY_AUTH_TOKEN": "s3cret"}, tmp_path, open_to_all=False)
    path = node_checks.of_token({"RAY_AUTH_TOKEN_PATH": str(token)}, Path("/nowhere"), open_to_all=False)
    assert [c.verdict for c in (readable, mine, given, path)] == ["note", "ok", "ok", "ok"]
    assert given.found == "on, from RAY_AUTH_TOKEN"
    assert path.found == f"on, from {token} (RAY_AUTH_TOKEN_PATH)"
    assert "s3cret" not in str([not_required, readable, mine, given, path])
    missing = node_checks.of_token({}, tmp_path / "other", open_to_all=False)
    assert (missing.verdict, "does not exist" in missing.found) == ("wrong", True)


def test_full_disks_and_small_shared_memory() -> None:
    fine = list(node_checks.of_disks([seen()]))
    assert [check.found for check in fine] == [
        "at least 90.0 GB free for objects that Ray spills, on 1 node",
        "enough for the object store, on 1 node",
    ]
    full, small = node_checks.of_disks([seen(), seen("y", disk=(100 * GB, 96 * GB, 4 * GB), shm=GB)])
    assert (full.verdict, full.found[:20]) == ("wrong", "y: 4.0 GB free, over")
    assert (small.verdict, small.cure[:25]) == ("note", "docker run --shm-size=3g,")


def test_a_node_that_cannot_read_the_data_is_named(tmp_path: Path) -> None:
    assert node_probe.unreadable(str(tmp_path)) == ""
    assert node_probe.unreadable(str(tmp_path / "gone")) == "No such file or directory"
    assert node_probe.unreadable("memory://gone/table.csv") == "it does not exist"
    (tmp_path / "file").touch()
    assert node_probe.unwritable(str(tmp_path / "file")) == f"{tmp_path / 'file'} is not a folder"
    there = {"x": facts(), "y": facts(unreadable={"/data/eyes": "No such file or directory"})}
    data, cache = node_checks.of_paths(there, ["/data/eyes", "/data/masks"], ["/cache"])
    assert (data.verdict, data.found) == ("wrong", "y: /data/eyes: No such file or directory")
    assert cache == Check("cache", "ok", "/cache can be written to on 2 nodes")
    both = next(node_checks.of_paths({"x": facts()}, ["/data/eyes", "/data/masks"], []))
    assert both.found == "2 folders under /data can be read on 1 node"


def test_the_paths_of_a_task_follow_from_its_fields() -> None:
    kind = task_class("segmentation")
    data = replace(kind().data, table="/tables/eyes.csv", root="/images")
    task = task_class("synthetic")().build()
    assert required_paths(task, replace(kind(), data=data)) == (["/tables/eyes.csv", "/images"], [])
    assert required_paths(task, task_class("synthetic")()) == ([], [])
