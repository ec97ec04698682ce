"""The commands in the files of cluster/, run by a shell."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.paths import ROOT

CLUSTER = ROOT / "cluster"


def prepared(name: str) -> dict[str, Any]:
    """The file after Ray has completed and checked it, before Ray starts anything."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    given = yaml.safe_load((CLUSTER / name).read_text())
    validate_config({**given, "cluster_synced_files": []} | ({} if "max_workers" in given else {"max_workers": 2}))
    config: dict[str, Any] = prepare_config(given)
    validate_config(config)
    return config


@pytest.mark.parametrize("name", ["gpu.yaml", "onprem.yaml"])
def test_ray_accepts_the_files_of_ray_up(name: str) -> None:
    config = prepared(name)
    assert {".env", "*.pem", "*.key", ".git"} <= set(config["rsync_exclude"])
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token", "~/raysim-source": "."}
    head, worker = (" ; ".join(config[f"{kind}_start_ray_commands"]) for kind in ("head", "worker"))
    assert "--dashboard-host=127.0.0.1" in head
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head
    assert "--address=$RAY_HEAD_IP:6379" in worker
    for command in (head, worker, *config["setup_commands"]):
        subprocess.run(["bash", "-n", "-c", command], check=True)
        assert "auth_token" not in command or "chmod" in command  # never the token itself


STUB = """#!/bin/sh
echo "$(basename $0) $*" >> $HOME/calls
stat -c %a "$RAY_AUTH_TOKEN_PATH" >> $HOME/modes 2>/dev/null
case $(basename $0) in
  scontrol) echo node-a; echo node-b ;;
  srun) case "$*" in *symmetric-run*)
    stat -c "%a" "$RAY_TMPDIR" >> $HOME/folders
    if [ -n "$SLOW" ]; then touch $HOME/running; sleep 30; fi; exit ${CODE:-0} ;;
  *mkdir*) mkdir -m 700 "$RAY_TMPDIR" ;; *rm*) rm -r "$RAY_TMPDIR" ;;
  esac ;;
esac
"""


def slurm(home: Path, **more: str) -> tuple[list[str], dict[str, str]]:
    """The command that runs the script with stubs that only record their calls, and its environment."""
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
    made, _, started, removed = calls
    folder = made.rpartition(" ")[2]
    assert (made, removed) == (
        f"srun --nodes=2 --ntasks=2 mkdir -m 700 {folder}",
        f"srun --nodes=2 --ntasks=2 rm -rf {folder}",
    )
    assert (tmp_path / "folders").read_text().split() == ["700"]
    assert not Path(folder).exists()
    assert started == (
        "srun --nodes=2 --ntasks=2 --kill-on-bad-exit=1 --cpus-per-task=32 "
        "ray symmetric-run --address node-a:20123 --min-nodes 2 "
        "--num-cpus 32 --num-gpus 4 --dashboard-host 127.0.0.1 --dashboard-agent-listen-port 0 "
        "--disable-usage-stats -- raysim run rounds=3 task.data.table=/a b/t.csv"
    )
    assert set((tmp_path / "modes").read_text().split()) == {"600"}
    assert not list(tmp_path.glob(".raysim-token*"))
    start, _, entry = started.partition("symmetric-run ")[2].partition(" -- ")
    assert entry.startswith("raysim run")
    # Ray has this command and these options of `ray start`.
    from ray.scripts.scripts import start as ray_start
    from ray.scripts.symmetric_run import symmetric_run

    known = {
        option for command in (ray_start, symmetric_run) for parameter in command.params for option in parameter.opts
    }
    assert {option for option in start.split() if option.startswith("--")} <= known


def test_slurm_stops_the_run_before_its_time_limit(tmp_path: Path) -> None:
    command, env = slurm(tmp_path, SLOW="1")
    with subprocess.Popen(command, env=env) as process:
        while not (tmp_path / "running").exists():
            assert process.poll() is None
        process.terminate()
        while "raysim stop --all" not in (tmp_path / "calls").read_text():
            assert process.poll() is None
        subprocess.run(["pkill", "-P", str(process.pid)], check=False)  # like the end of the run
    assert not list(tmp_path.glob(".raysim-token*"))


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A client of a simulated cloud in this process."""
    import boto3
    from moto import mock_aws

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray writes its key to ~/.ssh
    (tmp_path / ".ssh").mkdir()
    monkeypatch.setattr("ray.autoscaler._private.aws.config.time.sleep", lambda seconds: None)
    with mock_aws(config={"iam": {"load_aws_managed_policies": True}}):
        yield boto3.client("ec2", region_name="eu-central-1")


@pytest.mark.slow
def test_the_cloud_starts_the_machines_of_the_file(cloud: Any) -> None:
    """Create the machines as `ray up` and the head's autoscaler create them."""
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    config = prepared("gpu.yaml")
    group = cloud.create_security_group(GroupName="own", Description="own")["GroupId"]
    for kind in config["available_node_types"].values():
        kind["node_config"]["SecurityGroupIds"] = [group]  # the line marked FILL
    config = bootstrap_aws(AWSNodeProvider.fillout_available_node_types_resources(config))
    kinds = config["available_node_types"]
    assert (kinds["head"]["resources"], kinds["gpu"]["resources"]["GPU"]) == ({"CPU": 4}, 1)
    assert ":instance-profile/" in config["head_node"]["IamInstanceProfile"]["Arn"]  # the head starts machines itself

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
    assert {each["SecurityGroups"][0]["GroupName"] for each in machines} == {"own"}  # not Ray's, which is open to all
    assert {each["MetadataOptions"]["HttpTokens"] for each in machines} == {"required"}
