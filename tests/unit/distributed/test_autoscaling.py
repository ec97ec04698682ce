"""The nodes that an autoscaler may add, read from its configuration."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from raysim.core.errors import ConfigError
from raysim.distributed import autoscaling
from raysim.distributed.resources import NodeResources
from tests.support.paths import ROOT


def test_a_variable_declares_the_nodes_that_may_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSIM_AUTOSCALER", "{max_workers: 3, resources: {CPU: 8, GPU: 1}}")
    assert autoscaling.remaining_capacity([NodeResources("a", 8, 1)]) == [NodeResources("new node", 8, 1)] * 2
    assert autoscaling.remaining_capacity([NodeResources("a", 8, 1)] * 3) == []
    for wrong in ("8", "{max_workers: 8, resources: {cpu: 8}}", "{max_workers: many, resources: {CPU: 8}}"):
        monkeypatch.setenv("RAYSIM_AUTOSCALER", wrong)
        with pytest.raises(ConfigError, match=re.escape(f"RAYSIM_AUTOSCALER='{wrong}': expected a value such as")):
            autoscaling.remaining_capacity([])
    monkeypatch.setenv("RAYSIM_AUTOSCALER", "{max_workers: 0, resources: {CPU: 1}}")
    assert not autoscaling.has_autoscaler()
    assert autoscaling.provisionable_nodes() == []


def test_remaining_nodes_are_counted_for_each_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYSIM_AUTOSCALER", raising=False)
    kinds = {
        "head": {"resources": {"CPU": 4}},
        "cpu": {"resources": {"CPU": 16}, "max_workers": 4},
        "gpu": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 2},
    }
    config = {"max_workers": 4, "provider": {"type": "aws"}, "head_node_type": "head", "available_node_types": kinds}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setattr(autoscaling, "BOOTSTRAP_FILE", str(tmp_path / "config.yaml"))
    gpu, cpu = NodeResources("new gpu", 8, 1), NodeResources("new cpu", 16, 0)
    assert autoscaling.remaining_capacity([]) == [gpu, gpu, cpu, cpu]
    assert autoscaling.remaining_capacity([NodeResources("a", 16, 0)] * 2) == [gpu, gpu]
    assert autoscaling.remaining_capacity([NodeResources("a", 8, 1)] * 2) == [cpu, cpu]


def test_the_file_of_ray_up_declares_the_nodes_on_the_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYSIM_AUTOSCALER", raising=False)
    monkeypatch.setattr(autoscaling, "BOOTSTRAP_FILE", str(tmp_path / "config.yaml"))
    assert autoscaling.remaining_capacity([]) == []
    config = yaml.safe_load((ROOT / "cluster" / "gpu.yaml").read_text())
    config["available_node_types"]["gpu"]["resources"] = {
        "CPU": 8,
        "GPU": 1,
    }  # Ray fills them in from the instance type
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert autoscaling.remaining_capacity([]) == [NodeResources("new gpu", 8, 1)] * 8
    assert len(autoscaling.remaining_capacity([NodeResources("a", 8, 1)] * 5)) == 3
