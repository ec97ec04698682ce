"""Keys of a run from a plans file of nnU-Net, written here as nnU-Net writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets.dynunet import DynUNet
from pydantic import TypeAdapter

from raysim.core.errors import ConfigError
from raysim.tasks.networks import network_factory
from raysim.tasks.nnunet_plans import read_plans
from raysim.tasks.segmentation import Segmentation

NEW: dict[str, Any] = {
    "spacing": [3.0, 1.0, 2.0],
    "patch_size": [8, 32, 16],
    "architecture": {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 4,
            "features_per_stage": [4, 8, 16, 20],
            "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
            "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 1]],
            "n_conv_per_stage": [2, 2, 2, 2],
            "n_conv_per_stage_decoder": [2, 2, 2],
        },
    },
}
OLD: dict[str, Any] = {
    "spacing": [1.0, 2.0],
    "patch_size": [16, 24],
    "UNet_class_name": "PlainConvUNet",
    "UNet_base_num_features": 8,
    "unet_max_num_features": 12,
    "pool_op_kernel_sizes": [[1, 1], [2, 2]],
    "conv_kernel_sizes": [[3, 3], [3, 3]],
    "n_conv_per_stage_encoder": [2, 2],
    "n_conv_per_stage_decoder": [2],
}


def write(folder: Path, configurations: dict[str, Any], **keys: Any) -> str:
    path = folder / "nnUNetPlans.json"
    path.write_text(json.dumps({"transpose_forward": [0, 1, 2], **keys, "configurations": configurations}))
    return str(path)


def test_axes_are_reversed_and_the_network_is_that_of_the_plans(tmp_path: Path) -> None:
    plans = read_plans({"name": "nnunet", "plans": write(tmp_path, {"2d": OLD, "3d_fullres": NEW})})
    assert plans.patch == (16, 32, 8)  # x, y, z
    assert plans.spacing == (2.0, 1.0, 3.0)
    assert plans.network["strides"] == [(1, 1, 1), (2, 2, 1), (2, 2, 2), (1, 2, 2)]
    assert plans.network["kernel_size"][0] == (3, 3, 1)
    assert (plans.network["filters"], plans.network["deep_supr_num"]) == ([4, 8, 16, 20], 1)
    net = network_factory(plans.network, spatial_dims=3, in_channels=1, out_channels=2, size=plans.patch)()
    assert isinstance(net, DynUNet)
    # Convolutions of a stage: 2 of (c_in + c_out) c_out k^3 weights, and 2 scales and shifts of each of 2 norms.
    first = sum(p.numel() for p in net.input_block.parameters())
    assert first == (1 + 4) * 4 * 9 + 4 * 4
    assert net(torch.zeros(1, 1, *plans.patch)).shape == (1, 2, 2, 16, 32, 8)  # in training: two resolutions


def test_transposed_plans_and_an_older_file(tmp_path: Path) -> None:
    source = write(tmp_path, {"3d_fullres": NEW}, transpose_forward=[1, 0, 2])  # y, z, x
    assert read_plans({"name": "nnunet", "plans": source}).patch == (16, 8, 32)
    plans = read_plans({"plans": write(tmp_path, {"2d": OLD, "3d_fullres": NEW}), "configuration": "2d"})
    assert (plans.patch, plans.spacing, plans.network["filters"]) == ((24, 16), (2.0, 1.0), [8, 12])
    assert "deep_supervision" not in plans.network  # two stages have one resolution that nnU-Net trains


def test_values_are_inherited(tmp_path: Path) -> None:
    known = {"3d_fullres": NEW, "3d_small": {"inherits_from": "3d_fullres", "patch_size": [8, 16, 16]}}
    plans = read_plans({"plans": write(tmp_path, known), "configuration": "3d_small"})
    assert (plans.patch, plans.spacing) == ((16, 16, 8), (2.0, 1.0, 3.0))


def test_given_keys_take_precedence(tmp_path: Path) -> None:
    network = {"name": "nnU-Net", "plans": write(tmp_path, {"3d_fullres": NEW}), "deep_supervision": False}

    def task(**data: Any) -> Segmentation:
        made: Segmentation = TypeAdapter(Segmentation).validate_python({"network": network, "data": data})
        return made

    built = task()
    assert (built.data.patch, built.data.spacing) == ((16, 32, 8), (2.0, 1.0, 3.0))
    assert (built.network["name"], built.network["deep_supervision"]) == ("DynUNet", False)
    assert task(patch=[8, 8, 8], spacing=[1, 1, 1]).data.patch == (8, 8, 8)
    assert task(size=[32, 32, 32]).data.patch is None


@pytest.mark.parametrize(
    ("configurations", "keys", "message"),
    [
        ({"3d_fullres": NEW}, {"configuration": "3d_fulres"}, r"no such configuration \(did you mean '3d_fullres'\?\)"),
        ({"3d_fullres": {**NEW, "patch_size": None}}, {}, "has patch_size=None; expected two or three numbers"),
        ({}, {}, "has patch_size=None"),
        (
            {"2d": {**OLD, "UNet_class_name": "ResidualEncoderUNet"}},
            {},
            "its network is ResidualEncoderUNet; expected PlainConvUNet",
        ),
        ({"2d": {**OLD, "conv_kernel_sizes": [[3, 3]]}}, {}, "needs kernel_sizes, strides and features for each"),
        ({"2d": {**OLD, "n_conv_per_stage_encoder": [2, 3]}}, {}, r"its stages have \[2, 3\] convolutions"),
    ],
)
def test_plans_that_lack_something_are_refused(
    configurations: dict[str, Any], keys: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_plans({"name": "nnunet", "plans": write(tmp_path, configurations), **keys})


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text("patch")
    (tmp_path / "list.json").write_text("[1]")
    for source, message in [
        (None, "needs task.network.plans=FILE"),
        (str(tmp_path / "none.json"), "No such file or directory; give the file nnUNetPlans.json"),
        (str(tmp_path / "text.json"), "JSONDecodeError"),
        (str(tmp_path / "list.json"), "has no 'configurations'"),
        (write(tmp_path, {"2d": OLD}, transpose_forward=[1, 0, 2]), "for 2d begins with 0"),
    ]:
        with pytest.raises(ConfigError, match=message):
            read_plans({"name": "nnunet", "plans": source})
