"""The files of cluster/, each checked by the program that reads it, without a cloud or Kubernetes."""

from __future__ import annotations

import json
import re
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
    """The file after Ray has completed and checked it, before Ray starts anything."""
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


def test_the_cloud_starts_gpus_on_spot_instances_and_only_on_request() -> None:
    config = prepared("gpu.yaml")
    head, gpu = (config["available_node_types"][name] for name in ("head", "gpu"))
    assert config["head_node_type"] == "head"
    assert "InstanceMarketOptions" not in head["node_config"]
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert (gpu["min_workers"], gpu["max_workers"], config["max_workers"]) == (0, 8, 8)
    assert "security_group" not in config["provider"]  # Ray would open SSH to all addresses
    for node in (head["node_config"], gpu["node_config"]):
        assert node["SecurityGroupIds"][0].startswith("sg-")
        assert node["MetadataOptions"] == {"HttpTokens": "required"}
        assert all(disk["Ebs"]["Encrypted"] for disk in node["BlockDeviceMappings"])
    image, digest = config["docker"]["image"].split("@sha256:")
    assert (image, len(digest)) == (f"rayproject/ray:{PINS['ray']}-py311-gpu", 64)


@pytest.mark.parametrize("name", FILES)
def test_a_placeholder_names_nothing_that_exists_and_is_on_a_marked_line(name: str) -> None:
    lines = (CLUSTER / name).read_text().splitlines()
    placeholder = re.compile(r"-0{17}|sha256:0{64}|registry\.example|192\.0\.2\.")  # reserved, or never assigned
    found = [number for number, line in enumerate(lines) if placeholder.search(line)]
    assert bool(found) == (name in ("gpu.yaml", "kuberay.yaml"))
    for number in found:
        assert "FILL" in lines[number] + lines[number - 1], lines[number]
    for number in [number for number in found if "sha256" in lines[number]]:
        tag = re.search(r"image: ([^@]+)@", lines[number])
        assert tag
        assert f"`docker buildx imagetools inspect {tag[1]}`" in lines[number - 1]


def test_on_premise_machines_all_start_at_once() -> None:
    config = prepared("onprem.yaml")
    (kind,) = config["available_node_types"].values()
    assert (kind["min_workers"], kind["max_workers"]) == (2, 2)


# KubeRay's definition of ray.io/v1 (helm-chart/kuberay-operator/crds of its repository), reduced to the fields of the
# file: types, enumerations and required fields. The pods are checked with the schema of Kubernetes.
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
    autoscalerOptions=fields("", idleTimeoutSeconds=WHOLE, securityContext=POD),
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
    submitterPodTemplate=POD,
    rayClusterSpec=RAYCLUSTER,
)


def test_the_file_is_valid_for_kubernetes_and_kuberay() -> None:
    claim, policy, cluster, job = yaml.safe_load_all((CLUSTER / "kuberay.yaml").read_text())
    pods = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    templates = [*(pod["template"] for pod in pods), job["spec"]["submitterPodTemplate"]]
    pods = [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **template} for template in templates]
    for each in (claim, policy, *pods):
        kubernetes_validate.validate(each, "1.37", strict=True)
    for each, schema in ((cluster, RAYCLUSTER), (job, RAYJOB)):
        assert each["apiVersion"] == "ray.io/v1"
        jsonschema.validate(each["spec"], schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**cluster["spec"], "authOptions": {"mode": "none"}}, RAYCLUSTER)
    pods[0]["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pods[0], "1.37", strict=True)


UNPRIVILEGED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def check_privileges(template: dict[str, Any]) -> None:
    """The pod does not run as root, gains no privileges, and has an image by digest."""
    (container,) = template["spec"]["containers"]
    assert template["spec"]["securityContext"]["runAsNonRoot"]
    assert container["securityContext"] == UNPRIVILEGED
    assert re.search(r"@sha256:[0-9a-f]{64}$", container["image"])


def test_both_documents_of_kuberay_define_the_same_cluster() -> None:
    claim, policy, cluster, job = yaml.safe_load_all((CLUSTER / "kuberay.yaml").read_text())
    kinds = [each["kind"] for each in (claim, policy, cluster, job)]
    assert kinds == ["PersistentVolumeClaim", "NetworkPolicy", "RayCluster", "RayJob"]
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]
    spec = cluster["spec"]
    (group,) = spec["workerGroupSpecs"]
    assert spec["rayVersion"] == PINS["ray"]
    assert (group["minReplicas"], group["replicas"]) == (0, 0)
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert spec["autoscalerOptions"]["securityContext"] == UNPRIVILEGED
    check_privileges(job["spec"]["submitterPodTemplate"])
    for template in (spec["headGroupSpec"]["template"], group["template"]):
        volumes = {volume["name"] for volume in template["spec"]["volumes"]}
        (container,) = template["spec"]["containers"]
        check_privileges(template)
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        assert container["resources"]["requests"] == container["resources"]["limits"]


def queries(node: Any) -> list[str]:
    """Every expression and every query of a variable in a dashboard."""
    if isinstance(node, dict):
        own = [node[key] for key in ("expr", "definition") if isinstance(node.get(key), str)]
        return own + [query for value in node.values() for query in queries(value)]
    return [query for value in node for query in queries(value)] if isinstance(node, list) else []


def test_the_dashboard_queries_exactly_the_metrics_of_raysim() -> None:
    from raysim.distributed.prometheus import COUNTERS, GAUGES

    board = json.loads((CLUSTER / "grafana" / "raysim.json").read_text())
    queried = {name for query in queries(board) for name in re.findall(r"\bray_\w+", query)}
    exported = {f"ray_{name}" for name in GAUGES} | {f"ray_{name}_total" for name in COUNTERS} | {"ray_raysim_trials"}
    assert queried == exported
    assert [panel["repeat"] for panel in board["panels"] if panel["type"] == "row"] == ["run", "search"]
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            metric = re.search(r"ray_(\w+?)(_total)?{", target["expr"])
            assert metric
            tags = {**GAUGES, **COUNTERS}.get(metric[1], ("", ("status",)))[1]
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= set(tags)
