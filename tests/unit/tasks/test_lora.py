"""Low-rank adapters, with peft, which is an optional package."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import UNETR

from algorithms.fedavg import FedAvg
from raysim import ConfigError, train_only, weights
from raysim.config.schema import RunConfig
from raysim.core.module_copy import copy_module
from raysim.core.network_factories import initial_weights
from raysim.core.seeding import seeded
from raysim.federation.plan import build_plan
from raysim.tasks.lora import merge_adapters, with_lora
from raysim.tasks.network_keys import network_arguments
from raysim.tasks.synthetic import Synthetic, SyntheticData

SIZES: dict[str, Any] = {"feature_size": 4, "hidden_size": 24, "mlp_dim": 48, "num_heads": 2}
FACTORY = partial(UNETR, in_channels=1, out_channels=2, img_size=(32, 32), spatial_dims=2, **SIZES)
LORA = {"rank": 2, "targets": ["qkv"]}


def test_without_adapters_the_factory_is_unchanged() -> None:
    assert with_lora(FACTORY, {"name": "unetr"}) is FACTORY
    assert network_arguments({"name": "unetr", "lora": LORA, "num_heads": 2}) == {"num_heads": 2}


def test_a_missing_package_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"needs the package peft; .*pip install 'raysim\[lora\]'"):
        with_lora(FACTORY, {"lora": LORA})


def test_adapters_are_added_and_only_they_are_sent(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    network = {"name": "unetr", **SIZES, "lora": LORA}
    task = Synthetic(data=SyntheticData(sites=1, cases=1, test=1, size=(32, 32)), network=network).build()
    assert initial_weights(task) is None
    with pytest.raises(ConfigError, match=r"add \"algorithm.trainable=\['\*lora_\*'\]\""):
        build_plan(RunConfig(task=Synthetic(), algorithm=FedAvg()), tmp_path, task=task)
    net = train_only(task, ["*lora_*"]).start(0)
    # Each of 12 layers qkv, 24 -> 72, has A (2, 24) and B (72, 2).
    assert weights(net).nbytes == 12 * 4 * (2 * 24 + 72 * 2)
    assert weights(net) == weights(train_only(task, ["*lora_*"]).start(0)) == weights(copy_module(net))
    plain, x = FACTORY, torch.ones(1, 1, 32, 32)
    with seeded(0, "init"):
        expected = plain().eval()(x)
    assert torch.equal(net.eval()(x), expected)


def test_merged_adapters_give_the_same_outputs_without_peft() -> None:
    pytest.importorskip("peft")
    net = with_lora(FACTORY, {"lora": LORA})().eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "lora_B" in name:  # zero at the start
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    inputs = torch.linspace(-1, 1, 32 * 32).reshape(1, 1, 32, 32)
    expected, plain = net(inputs), FACTORY().eval()
    assert (plain(inputs) - expected).abs().max() > 1e-3
    plain.load_state_dict(merge_adapters(net).state_dict())
    assert (plain(inputs) - expected).abs().max() < 1e-5


def test_a_target_that_does_not_exist_is_refused() -> None:
    pytest.importorskip("peft")
    with pytest.raises(ConfigError, match=r"no linear layer 'qkx'; .* one of linear1, linear2, out_proj, qkv"):
        with_lora(FACTORY, {"lora": {"rank": 2, "targets": ["qkx"]}})
    with pytest.raises(ConfigError, match="it has none: use a transformer"):
        with_lora(partial(torch.nn.Conv2d, 1, 1, 1), {"lora": LORA})
