"""The files of cluster/: each against what reads it, as far as that goes without a cloud, a Kubernetes or a Slurm."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.support.paths import ROOT

CLUSTER = ROOT / "cluster"
PINS = dict(line.split("==") for line in (CLUSTER.parent / "constraints.txt").read_text().splitlines() if "==" in line)
FILES = ("gpu.yaml", "onprem.yaml", "kuberay.yaml", "slurm.sh")


def prepared(name: str) -> dict[str, Any]:
    """The file as Ray completes and checks it before it starts anything."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    given = yaml.safe_load((CLUSTER / name).read_text())
    validate_config({**given, "cluster_synced_files": []} | ({} if "max_workers" in given else {"max_workers": 2}))
    config: dict[str, Any] = prepare_config(given)
    validate_config(config)
    return config


@pytest.mark.parametrize("name", FILES)
def test_each_begins_with_the_command_that_uses_it_and_keeps_the_token_on(name: str) -> None:
    text = (CLUSTER / name).read_text()
    first = next(line for line in text.splitlines() if line.startswith("# "))
    assert f"cluster/{name}" in first
    assert "FILL" in text
    assert re.search(r"RAY_AUTH_MODE=token|authOptions: {mode: token}", text)
    assert not re.search(r"dashboard-host[= ]\"?0\.0\.0\.0", text)
    assert "RAYSIM_RUNS" in text
    assert "RAY_ADDRESS" in text


@pytest.mark.parametrize("name", ["gpu.yaml", "onprem.yaml"])
def test_ray_understands_what_ray_up_is_given(name: str) -> None:
    config = prepared(name)
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token", "~/raysim-source": "."}
    head, worker = (" ; ".join(config[f"{who}_start_ray_commands"]) for who in ("head", "worker"))
    assert "--dashboard-host=127.0.0.1" in head
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head
    assert "--address=$RAY_HEAD_IP:6379" in worker
    for command in (head, worker, *config["setup_commands"]):
        subprocess.run(["bash", "-n", "-c", command], check=True)
        assert "auth_token" not in command or "chmod" in command  # never the token itself


def test_the_cloud_has_its_gpus_on_spot_and_only_when_they_are_wanted() -> None:
    config = prepared("gpu.yaml")
    head, gpu = (config["available_node_types"][name] for name in ("head", "gpu"))
    assert config["head_node_type"] == "head"
    assert "InstanceMarketOptions" not in head["node_config"]
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert (gpu["min_workers"], gpu["max_workers"], config["max_workers"]) == (0, 8, 8)
    assert set(config["provider"]["security_group"]) == {"GroupName"}  # no port but SSH
    assert config["docker"]["image"] == f"rayproject/ray:{PINS['ray']}-py311-gpu"


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A cloud in this process, and a client of it."""
    import boto3
    from moto import mock_aws

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray leaves the key that it makes in ~/.ssh
    (tmp_path / ".ssh").mkdir()
    monkeypatch.setattr("ray.autoscaler._private.aws.config.time.sleep", lambda seconds: None)
    with mock_aws(config={"iam": {"load_aws_managed_policies": True}}):
        yield boto3.client("ec2", region_name="eu-central-1")


def test_the_cloud_starts_what_the_file_says(cloud: Any) -> None:
    """As `ray up` does, up to the machines, and as Ray does on the head when workers are wanted."""
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    config = prepared("gpu.yaml")
    config = bootstrap_aws(AWSNodeProvider.fillout_available_node_types_resources(config))
    kinds = config["available_node_types"]
    assert (kinds["head"]["resources"], kinds["gpu"]["resources"]["GPU"]) == ({"CPU": 4}, 1)
    assert ":instance-profile/" in config["head_node"]["IamInstanceProfile"]["Arn"]  # the head starts machines itself

    named = [{"Name": "group-name", "Values": ["raysim-gpu"]}]
    (group,) = cloud.describe_security_groups(Filters=named)["SecurityGroups"]
    inner, ssh = group["IpPermissions"]
    assert [each["GroupId"] for each in inner["UserIdGroupPairs"]] == [group["GroupId"]]  # from node to node, all
    assert (inner["IpRanges"], ssh["FromPort"], ssh["ToPort"]) == ([], 22, 22)  # from elsewhere SSH alone

    image = cloud.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]  # the line marked FILL
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for kind, count in (("head", 1), ("gpu", 1)):
        tags = {"ray-node-kind": "head" if kind == "head" else "worker", "ray-user-node-type": kind}
        tags |= {"ray-node-name": kind, "ray-launch-config": "0", "ray-node-status": "up-to-date"}
        provider.create_node({**kinds[kind]["node_config"], "ImageId": image}, tags, count)
    machines = [each for made in cloud.describe_instances()["Reservations"] for each in made["Instances"]]
    found = sorted((each["InstanceType"], each.get("InstanceLifecycle", "on demand")) for each in machines)
    assert found == [("g5.2xlarge", "spot"), ("m6i.xlarge", "on demand")]
    assert {each["Placement"]["AvailabilityZone"] for each in machines} == {"eu-central-1a"}
    assert {each["SecurityGroups"][0]["GroupName"] for each in machines} == {"raysim-gpu"}


def test_own_machines_all_come_at_once() -> None:
    config = prepared("onprem.yaml")
    (kind,) = config["available_node_types"].values()
    assert (kind["min_workers"], kind["max_workers"]) == (2, 2)


# KubeRay's definition of ray.io/v1 (helm-chart/kuberay-operator/crds of its repository), cut to the fields used
# here: its types, its enumerations, and what it requires. Of the pods, Kubernetes' own schema tells.
TEXT, WHOLE = {"type": "string"}, {"type": "integer", "minimum": 0}
SWITCH, POD = {"type": "boolean"}, {"type": "object"}
PARAMS = {"type": "object", "additionalProperties": TEXT}


def fields(required: str, **properties: dict[str, Any]) -> dict[str, Any]:
    """The schema of an object with these fields and no others."""
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required.split(),
        "properties": properties,
    }


RAYCLUSTER = fields(
    "headGroupSpec",
    rayVersion=TEXT,
    authOptions=fields("", mode={"enum": ["disabled", "token"]}),
    enableInTreeAutoscaling=SWITCH,
    autoscalerOptions=fields("", idleTimeoutSeconds=WHOLE),
    headGroupSpec=fields("template", serviceType=TEXT, rayStartParams=PARAMS, template=POD),
    workerGroupSpecs={
        "type": "array",
        "items": fields(
            "groupName maxReplicas minReplicas template",
            **dict.fromkeys(("replicas", "minReplicas", "maxReplicas"), WHOLE),
            groupName=TEXT,
            rayStartParams=PARAMS,
            template=POD,
        ),
    },
)
RAYJOB = fields(
    "",
    entrypoint=TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
    shutdownAfterJobFinishes=SWITCH,
    ttlSecondsAfterFinished=WHOLE,
    activeDeadlineSeconds=WHOLE,
    backoffLimit=WHOLE,
    rayClusterSpec=RAYCLUSTER,
)


def test_kubernetes_and_kuberay_would_take_it() -> None:
    claim, cluster, job = yaml.safe_load_all((CLUSTER / "kuberay.yaml").read_text())
    pods = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    pods = [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **pod["template"]} for pod in pods]
    for each in (claim, *pods):
        kubernetes_validate.validate(each, "1.37", strict=True)
    for each, schema in ((cluster, RAYCLUSTER), (job, RAYJOB)):
        assert each["apiVersion"] == "ray.io/v1"
        jsonschema.validate(each["spec"], schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**cluster["spec"], "authOptions": {"mode": "none"}}, RAYCLUSTER)
    pods[0]["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pods[0], "1.37", strict=True)


def test_the_two_ways_of_kuberay_are_one_cluster() -> None:
    claim, cluster, job = yaml.safe_load_all((CLUSTER / "kuberay.yaml").read_text())
    assert (claim["kind"], cluster["kind"], job["kind"]) == ("PersistentVolumeClaim", "RayCluster", "RayJob")
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]
    spec = cluster["spec"]
    (group,) = spec["workerGroupSpecs"]
    assert spec["rayVersion"] == PINS["ray"]
    assert (group["minReplicas"], group["replicas"]) == (0, 0)
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    for template in (spec["headGroupSpec"]["template"], group["template"]):
        volumes = {volume["name"] for volume in template["spec"]["volumes"]}
        (container,) = template["spec"]["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        assert container["resources"]["requests"] == container["resources"]["limits"]


STUB = """#!/bin/sh
echo "$(basename $0) $*" >> $HOME/calls
stat -c %a "$RAY_AUTH_TOKEN_PATH" >> $HOME/modes 2>/dev/null
case $(basename $0) in
  scontrol) echo node-a; echo node-b ;;
  srun) if [ -n "$SLOW" ]; then touch $HOME/running; sleep 30; fi; exit ${CODE:-0} ;;
esac
"""


def slurm(home: Path, **more: str) -> tuple[list[str], dict[str, str]]:
    """What to run for the script with commands that only tell that they were called."""
    (home / "raysim-env" / "bin").mkdir(parents=True)
    (home / "raysim-env" / "bin" / "activate").write_text("")
    for name in ("scontrol", "srun", "raysim"):
        (home / name).write_text(STUB)
        (home / name).chmod(0o755)
    given = {"SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "123"}
    given |= {"SLURM_CPUS_PER_TASK": "32", "SLURM_GPUS_ON_NODE": "4", "HOME": str(home)}
    command = ["bash", str(CLUSTER / "slurm.sh"), "run", "rounds=3", "task.data.table=/a b/t.csv"]
    return command, {**os.environ, "PATH": f"{home}:{os.environ['PATH']}", **given, **more}


@pytest.mark.parametrize("code", [0, 3])
def test_slurm_starts_ray_on_all_nodes_and_the_command_on_the_first(code: int, tmp_path: Path) -> None:
    command, env = slurm(tmp_path, CODE=str(code))
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == code, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[-1] == (
        "srun --nodes=2 --ntasks=2 --kill-on-bad-exit=1 --cpus-per-task=32 "
        "ray symmetric-run --address node-a:20123 --min-nodes 2 "
        "--num-cpus 32 --num-gpus 4 --dashboard-host 127.0.0.1 --dashboard-agent-listen-port 0 "
        "--disable-usage-stats -- raysim run rounds=3 task.data.table=/a b/t.csv"
    )
    assert set((tmp_path / "modes").read_text().split()) == {"600"}
    assert not list(tmp_path.glob(".raysim-token*"))
    start, _, entry = calls[-1].partition("symmetric-run ")[2].partition(" -- ")
    assert entry.startswith("raysim run")
    # Ray's own words: that it has this command, and takes these options of `ray start`.
    from ray.scripts.scripts import start as ray_start
    from ray.scripts.symmetric_run import symmetric_run

    known = {
        option for command in (ray_start, symmetric_run) for parameter in command.params for option in parameter.opts
    }
    assert {word for word in start.split() if word.startswith("--")} <= known


def test_slurm_ends_the_run_when_its_time_is_nearly_up(tmp_path: Path) -> None:
    command, env = slurm(tmp_path, SLOW="1")
    with subprocess.Popen(command, env=env) as process:
        while not (tmp_path / "running").exists():
            assert process.poll() is None
        process.terminate()
        while "raysim stop --all" not in (tmp_path / "calls").read_text():
            assert process.poll() is None
        subprocess.run(["pkill", "-P", str(process.pid)], check=False)  # as the run's end would
    assert not list(tmp_path.glob(".raysim-token*"))


def queries(node: Any) -> list[str]:
    """Every expression and every query of a variable in a dashboard."""
    if isinstance(node, dict):
        own = [node[key] for key in ("expr", "definition") if isinstance(node.get(key), str)]
        return own + [query for value in node.values() for query in queries(value)]
    return [query for value in node for query in queries(value)] if isinstance(node, list) else []


def test_the_dashboard_asks_for_nothing_but_what_raysim_exports() -> None:
    from raysim.distributed.prometheus import COUNTERS, GAUGES

    board = json.loads((CLUSTER / "grafana" / "raysim.json").read_text())
    asked = {name for query in queries(board) for name in re.findall(r"\bray_\w+", query)}
    told = {f"ray_{name}" for name in GAUGES} | {f"ray_{name}_total" for name in COUNTERS} | {"ray_raysim_trials"}
    assert asked == told
    assert [panel["repeat"] for panel in board["panels"] if panel["type"] == "row"] == ["run", "search"]
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            metric = re.search(r"ray_(\w+?)(_total)?{", target["expr"])
            assert metric
            tags = {**GAUGES, **COUNTERS}.get(metric[1], ("", ("status",)))[1]
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= set(tags)
