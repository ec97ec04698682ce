"""The doctor: what it makes of what it found, by hand; and the command, on a Ray of two nodes and without."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from raysim.cli.main import main
from raysim.core.registry import algorithm_class, task_class
from raysim.distributed import diagnostics, node_probe
from raysim.distributed.batch_probe import (
    CONTEXT,
    BatchProbe,
    Machine,
    actors,
    actors_per_gpu,
    measure_batches,
    propose_resources,
    steps_of,
)
from raysim.distributed.cluster_checks import _node
from raysim.distributed.diagnostics import Check, NodeReport
from raysim.federation.site_executor import DATA_CACHE_BYTES, Failure

GB = 10**9
SMALL = (
    *("task.data.sites=3", "task.data.size=[16,16]", "task.data.cases=4", "task.data.test=2", "task.data.val=0"),
    *("network={name: unet, channels: [2, 4], strides: [2]}", "task.batch_size=2"),
)
PROBE = BatchProbe(
    site="a",
    batch=4,
    device="cpu",
    seconds={1: 0.4, 2: 0.2, 4: 0.19},
    imports=GB // 2,
    peak=GB,
    held=0,
    allocated=0,
    reserved=0,
    parameters=10,
    model=40,
)
STEPS = {"a": 10, "b": 5, "c": 5}
MINE = """
import os
from dataclasses import dataclass
from raysim import LocalTraining, weights

@dataclass(frozen=True, kw_only=True)
class Lost(LocalTraining):
    def init(self, task):
        return weights(task.network())
    def fit(self, net, site, **given):
        raise LookupError("no such organ")
    def round(self, fleet, state):
        return state, {}
    def predictor(self, site, state):
        return None

@dataclass(frozen=True, kw_only=True)
class Dies(Lost):
    def fit(self, net, site, **given):
        os.kill(os.getpid(), 9)
"""


def proposed(machines: list[Machine], probe: BatchProbe = PROBE, steps: Any = STEPS, most: int = 3) -> Any:
    found = propose_resources(machines, probe, steps, most)
    if found is None:
        return None
    given = found.resources
    return given.clients, given.cpus_per_client, given.gpus_per_client, pytest.approx(found.seconds)


def test_few_cpus_go_to_one_actor_each() -> None:
    # 2 CPUs: two actors of one thread, 10 steps and 5 + 5 steps, 4 s; one actor of two would take 20 x 0.2 = 4 s too.
    assert proposed([Machine(2, 100 * GB)]) == (2, 1.0, 0.0, 4.0)


def test_cpus_that_are_left_become_threads_where_they_gain() -> None:
    # 12 CPUs, three sites: with two threads 10 x 0.2 = 2 s; four threads gain less than a twentieth.
    assert proposed([Machine(12, 100 * GB)]) == (3, 2.0, 0.0, 2.0)


def test_never_more_actors_than_sites_or_than_are_allowed() -> None:
    assert proposed([Machine(64, 100 * GB)])[0] == 3
    assert proposed([Machine(64, 100 * GB)], most=1)[0] == 1


def test_memory_leaves_a_fifth_free() -> None:
    # 0.8 x 2.6 GB hold two actors of 1 GB. Ray would put eight on 8 CPUs: 4 threads each let it put two.
    assert proposed([Machine(8, 2.6 * GB)], replace(PROBE, seconds={1: 0.4})) == (2, 1.0, 0.0, 4.0)
    assert proposed([Machine(8, 0.9 * GB)]) is None


def test_two_nodes_with_little_memory_are_both_filled_by_larger_actors() -> None:
    # With one CPU each Ray might put all on one node, which holds two: so two. With 3 of 8 CPUs, two go onto each.
    nodes, probe = [Machine(8, 2.6 * GB)] * 2, replace(PROBE, seconds={1: 0.4})
    assert actors(nodes, 1, None, GB, 4) == 2
    assert actors(nodes, 3, None, GB, 4) == 4
    assert proposed(nodes, probe, dict.fromkeys("abcd", 5), 4) == (4, 3.0, 0.0, 2.0)


def test_data_that_an_actor_keeps_count_for_every_site_up_to_a_limit() -> None:
    assert replace(PROBE, held=10).memory(3) == GB + 20
    assert replace(PROBE, held=DATA_CACHE_BYTES).memory(3) == GB + DATA_CACHE_BYTES


def test_the_share_of_a_gpu_follows_its_memory() -> None:
    probe = replace(PROBE, device="cuda", seconds={1: 0.1}, reserved=3 * GB - CONTEXT)
    # 10 GB hold three of 3 GB; the two GPUs six, of which three sites need three.
    nodes = [Machine(16, 100 * GB, 2, 10 * GB)]
    assert actors_per_gpu(nodes, probe) == 3
    assert proposed(nodes, probe) == (3, 1.0, 0.3333, 1.0)
    assert proposed([Machine(16, 100 * GB, 1, 80 * GB)], probe)[2] == 0.2  # five at most
    assert proposed([Machine(16, 100 * GB, 1, 2 * GB)], probe) is None
    assert actors([Machine(16, 100 * GB), *nodes], 1, 3, GB, 99) == 6  # none on the node without a GPU


def test_a_round_has_the_algorithm_s_steps_or_those_of_an_epoch() -> None:
    task = task_class("synthetic")().build()  # 24 cases, batches of 4
    assert set(steps_of(algorithm_class("fedavg")(epochs=2), task).values()) == {12}
    assert set(steps_of(algorithm_class("fedavg")(steps=5), task).values()) == {5}
    assert set(steps_of(object(), task).values()) == {6}


def test_a_measured_batch() -> None:
    task = task_class("synthetic")().build()
    found = measure_batches(task, algorithm_class("fedavg")(), 0, "site-02", [1], gpu=True)
    assert isinstance(found, BatchProbe)
    assert (found.site, found.batch, set(found.seconds)) == ("site-02", 4, {1})
    assert found.model >= 4 * found.parameters > 0
    assert found.peak >= found.imports > 50_000_000
    broken = replace(task, loss=lambda logits, labels: 1 / 0)
    failure = measure_batches(broken, algorithm_class("fedavg")(), 0, "site-02", [1], gpu=False)
    assert isinstance(failure, Failure)
    assert failure.cause == "ZeroDivisionError: division by zero"


def facts(**given: Any) -> dict[str, Any]:
    usual = {"versions": {"torch": "2.6"}, "cuda": None, "gpus": [], "fault": "", "unreadable": {}, "unwritable": {}}
    return usual | {"disk": (100 * GB, 10 * GB, 90 * GB), "shm": 10 * GB, "listens": ["127.0.0.1"]} | given


def seen(name: str = "x", **given: Any) -> NodeReport:
    return NodeReport(name, 4, 0, 8 * GB, 2 * GB, facts(**given))


def test_versions_that_differ_are_named_with_their_node() -> None:
    own = {"torch": "2.7", "numpy": "2.0"}
    other = {"x": {"torch": "2.7", "numpy": "2.0"}, "y": {"torch": "2.6"}}
    assert node_probe.differences(own, other) == {"y": {"torch": "2.6", "numpy": "missing"}}
    told = list(diagnostics.of_versions({name: {"versions": of} for name, of in other.items()}, own))
    assert [check.verdict for check in told] == ["ok", "wrong"]
    assert told[1].found == "y: torch 2.6 (here 2.7), numpy missing (here 2.0)"


def test_a_node_that_is_silent_is_named() -> None:
    silent = _node("10.0.0.7", {"CPU": 4.0}, None, ready=False)
    (check,) = diagnostics.of_nodes([silent])
    assert (check.verdict, check.found) == (
        "wrong",
        "10.0.0.7: 4 CPU, 0 GPU, 0 B memory; no answer within 20 s",
    )
    assert not list(diagnostics.of_gpus([silent]))


@pytest.mark.parametrize(
    ("declared", "found", "verdict"), [(2, 0, "wrong"), (1, 1, "ok"), (0, 1, "note"), (0, 0, "ok"), (2, 1, "wrong")]
)
def test_gpus_that_ray_and_torch_do_not_agree_on(declared: int, found: int, verdict: str) -> None:
    node_seen = NodeReport("x", 4, declared, 8 * GB, 0, facts(gpus=[("H100", 80 * GB)] * found))
    assert [check.verdict for check in diagnostics.of_gpus([node_seen])] == [verdict]
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
def test_a_ray_of_one_s_own_is_not_open_to_the_network(listens: Any, own: bool, verdict: str) -> None:
    (check,) = diagnostics.of_listening({"x": facts(listens=listens)}, own)
    assert check.verdict == verdict


def test_an_address_of_ipv4_in_the_clothes_of_ipv6() -> None:
    assert [node_probe.plain_address(of) for of in ("::ffff:127.0.0.1", "::", "10.0.0.1")] == [
        "127.0.0.1",
        "::",
        "10.0.0.1",
    ]


def test_a_token_is_found_and_never_told(tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    token = tmp_path / ".ray" / "auth_token"
    token.write_text("s3cret")
    token.chmod(0o644)
    nobody_asks = diagnostics.of_token({"RAY_AUTH_TOKEN": "s3cret"}, tmp_path, open_to_all=True)
    assert (nobody_asks.verdict, nobody_asks.found[:3]) == ("note", "off")
    readable = diagnostics.of_token({}, tmp_path, open_to_all=False)
    token.chmod(0o600)
    mine = diagnostics.of_token({}, tmp_path, open_to_all=False)
    given = diagnostics.of_token({"RAY_AUTH_TOKEN": "s3cret"}, tmp_path, open_to_all=False)
    path = diagnostics.of_token({"RAY_AUTH_TOKEN_PATH": str(token)}, Path("/nowhere"), open_to_all=False)
    assert [c.verdict for c in (readable, mine, given, path)] == ["note", "ok", "ok", "ok"]
    assert given.found == "on, from RAY_AUTH_TOKEN"
    assert path.found == f"on, from {token} (RAY_AUTH_TOKEN_PATH)"
    assert "s3cret" not in str([nobody_asks, readable, mine, given, path])
    missing = diagnostics.of_token({}, tmp_path / "other", open_to_all=False)
    assert (missing.verdict, "is not there" in missing.found) == ("wrong", True)


def test_full_disks_and_small_shared_memory() -> None:
    fine = list(diagnostics.of_disks([seen()]))
    assert [check.found for check in fine] == [
        "at least 90.0 GB free for what Ray spills, on 1 node",
        "enough for the object store, on 1 node",
    ]
    full, small = diagnostics.of_disks([seen(), seen("y", disk=(100 * GB, 96 * GB, 4 * GB), shm=GB)])
    assert (full.verdict, full.found[:20]) == ("wrong", "y: 4.0 GB free, over")
    assert (small.verdict, small.cure[:25]) == ("note", "docker run --shm-size=3g,")


def test_a_node_that_does_not_see_the_data_is_named(tmp_path: Path) -> None:
    assert node_probe.unreadable(str(tmp_path)) == ""
    assert node_probe.unreadable(str(tmp_path / "gone")) == "No such file or directory"
    assert node_probe.unreadable("memory://gone/table.csv") == "it is not there"
    (tmp_path / "file").touch()
    assert node_probe.unwritable(str(tmp_path / "file")) == f"{tmp_path / 'file'} is no folder"
    there = {"x": facts(), "y": facts(unreadable={"/data/eyes": "No such file or directory"})}
    data, cache = diagnostics.of_paths(there, ["/data/eyes", "/data/masks"], ["/cache"])
    assert (data.verdict, data.found) == ("wrong", "y: /data/eyes: No such file or directory")
    assert cache == Check("cache", "ok", "/cache can be written to on 2 nodes")
    both = next(diagnostics.of_paths({"x": facts()}, ["/data/eyes", "/data/masks"], []))
    assert both.found == "2 folders under /data can be read on 1 node"


def test_the_paths_of_a_task_are_those_its_fields_say() -> None:
    kind = task_class("segmentation")
    data = replace(kind().data, table="/tables/eyes.csv", root="/images")
    task = task_class("synthetic")().build()
    assert diagnostics.data_paths(task, replace(kind(), data=data)) == (["/tables/eyes.csv", "/images"], [])
    assert diagnostics.data_paths(task, task_class("synthetic")()) == ([], [])


@pytest.fixture
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_doctor_case.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        ([], 0, r"Ray +ok +not used: backend=local"),
        (["algorithm=my_doctor_case:Lost"], 1, r"batch +wrong +LookupError: no such organ"),
        (["algorithm=my_doctor_case:Dies"], 1, r"batch +wrong +the process died with exit code -9"),
        (["resources.gpus_per_client=1"], 3, r"resources +wrong +asked for 1 client actor of 1 CPU and 1 GPU"),
    ],
)
def test_without_ray(
    words: list[str], code: int, line: str, working_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", *SMALL, "backend=local", *words]) == code
    shown = capsys.readouterr().out
    assert re.search(line, shown)
    assert ("resources.cpus_per_client=" in shown) == ("algorithm=" not in "".join(words))
    assert "Traceback" not in shown
    assert not (working_directory / "runs").exists()


def test_tasks_on_classes_and_on_tables(working_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["site,split,image,label,size"]
    for site, count in (("a", 4), ("b", 6)):
        for number, split in enumerate(["val", *["train"] * count]):
            Image.new("L", (16, 12), number).save(working_directory / f"{site}{number}.png")
            lines.append(f"{site},{split},{site}{number}.png,{number % 2},{number}.5")
    (working_directory / "t.csv").write_text("\n".join(lines))
    given = ["backend=local", "task.data.table=t.csv", "task.data.cache=cache", "task.batch_size=3"]
    for words, network in (
        (["task=classification", "network={name: classifier, channels: [2, 2]}"], r"\d+ parameters"),
        (["task=tabular"], "4 parameters, 16 B as a model"),  # a weight and a bias for each of two classes
    ):
        assert main(["doctor", *given, *words]) == 0
        shown = capsys.readouterr().out
        assert re.search(rf"of +3 examples of b, .*\n +network +{network}", shown)
        assert re.search(r"data +ok +\S+ can be read", shown)
        assert re.search(r"cache +ok +\S+/cache can be written", shown)


@pytest.mark.parametrize("words", [["rondus=3"], ["--rounds=3"], ["-c", "gone.yaml"], ["task=segmentation"]])
def test_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *words]) == 2
    assert capsys.readouterr().err.startswith("raysim: ")


CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
cluster.add_node(num_cpus=1, num_gpus=2)
cluster.wait_for_nodes()
print("address", cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Ray of two nodes, one with two GPUs that are not there."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", CLUSTER], **pipes) as process:
        assert process.stdout
        assert process.stdin
        yield next(line.split()[1] for line in process.stdout if line.startswith("address "))
        process.stdin.close()


@pytest.mark.ray
@pytest.mark.parametrize(
    ("words", "code", "verdict"),
    [
        (["resources.gpus_per_client=0.5"], 1, "ok +1 client actor of"),
        (["resources.cpus_per_client=99"], 3, "wrong +asked for 1 client actor of 99"),
    ],
)
def test_on_a_ray_of_two_nodes(
    words: list[str], code: int, verdict: str, cluster: str, working_directory: Path
) -> None:
    command = [sys.executable, "-m", "raysim", "doctor", *SMALL, f"ray_address={cluster}", *words]
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=environment)
    assert (done.returncode, "Traceback" in done.stdout + done.stderr) == (code, False)
    assert re.search(rf"Ray +note +\S+ at {cluster}, joined; dashboard none", done.stdout)
    assert len(re.findall(r"node +ok +\S+ \(\w{6}\): [12] CPU, [02] GPU, ", done.stdout)) == 2
    assert re.search(r"GPU +wrong +.* torch can use none; Ray was told of 2", done.stdout)
    assert re.search(r"versions +ok +python .*; the same on 2 nodes", done.stdout)
    assert re.search(rf"resources +{verdict}", done.stdout)
    assert re.search(r"a step +\d.* s with 1 thread", done.stdout)
    assert re.search(
        r"^  resources.client_actors=[123] resources.cpus_per_client=[12] resources.gpus_per_client=0$",
        done.stdout,
        re.M,
    )
    assert not (working_directory / "runs").exists()


@pytest.mark.ray
def test_what_an_autoscaler_would_bring_is_not_waited_for(cluster: str) -> None:
    words = ["doctor", *SMALL, f"ray_address={cluster}", "resources.cpus_per_client=64"]
    environment = {**os.environ, "COLUMNS": "200", "RAYSIM_AUTOSCALER": "{max_workers: 2, resources: {CPU: 64}}"}
    command = [sys.executable, "-m", "raysim", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=environment)
    assert re.search(r"resources +note +no room for 1 client actor yet: .*, of which 1 more may come", done.stdout)
    assert "one batch" not in done.stdout
    assert done.returncode == 1  # for the GPUs that are not there
