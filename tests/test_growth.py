"""What a cluster may grow by, as its files tell it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from raysim import growth
from raysim.errors import ConfigError
from raysim.placement import Node


def test_a_variable_tells_what_may_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSIM_GROWS", "{max_workers: 3, resources: {CPU: 8, GPU: 1}}")
    assert growth.coming(2) == [Node("new node", 8, 1)] * 2
    assert growth.coming(4) == []
    monkeypatch.setenv("RAYSIM_GROWS", "8")
    with pytest.raises(ConfigError, match="RAYSIM_GROWS='8': expected such as"):
        growth.coming(1)


def test_the_file_of_ray_up_tells_it_on_the_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYSIM_GROWS", raising=False)
    monkeypatch.setattr(growth, "BOOTSTRAP", str(tmp_path / "config.yaml"))
    assert growth.coming(1) == []
    config = yaml.safe_load((Path(__file__).parents[1] / "cluster" / "gpu.yaml").read_text())
    config["available_node_types"]["gpu"]["resources"] = {
        "CPU": 8,
        "GPU": 1,
    }  # as Ray fills it in, by the kind of machine
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert growth.coming(1) == [Node("new gpu", 8, 1)] * 8
    assert len(growth.coming(6)) == 3
