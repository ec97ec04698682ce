"""Network, patch and spacing from the plans file of nnU-Net: `task.network=nnunet task.network.plans=FILE`.

Isensee, Jaeger, Kohl, Petersen, Maier-Hein, "nnU-Net: a self-configuring method for deep learning-based biomedical
image segmentation", Nature Methods 18, 2021. https://www.nature.com/articles/s41592-020-01008-z
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysim.core.errors import ConfigError
from raysim.core.formatting import join_names
from raysim.core.suggestions import did_you_mean, squash

NAME = "nnunet"
PLANS, CONFIGURATION = "plans", "configuration"  # keys of task.network
DEFAULTS = ("3d_fullres", "2d")
CONVOLUTIONS = 2  # of each stage of MONAI's DynUNet
FIRST_FEATURES, MOST_FEATURES = 32, 320  # of nnU-Net


@dataclass(frozen=True)
class Plans:
    """Keys of a run, with the axes of raysim: right, anterior, superior.

    network: the keys of task.network, those of MONAI's DynUNet. patch, spacing: voxels and mm along each axis.
    """

    network: dict[str, Any]
    patch: tuple[int, ...]
    spacing: tuple[float, ...]


def uses_plans(network: Mapping[str, Any]) -> bool:
    """Whether the network is that of a plans file."""
    return squash(str(network.get("name"))) == NAME


def read_plans(network: Mapping[str, Any]) -> Plans:
    """The keys of a run from `task.network`, which has `plans`, optionally `configuration`, and keys of DynUNet.

    DynUNet has the stages, features, kernels and strides of PlainConvUNet of nnU-Net. Its convolutions have no bias,
    because a normalisation follows. Raises ConfigError for a file that cannot be used.
    """
    source = network.get(PLANS)
    if not isinstance(source, str) or not source:
        raise ConfigError(
            f"task.network=nnunet needs task.network.{PLANS}=FILE, the plans file of nnU-Net; add the key"
        )
    content = _read(source)
    chosen = _configuration(content, network.get(CONFIGURATION), source)
    architecture = _architecture(chosen, source)
    axes = _axes(content, len(chosen["patch_size"]), source)
    stages = {key: [_reorder(stage, axes) for stage in architecture[key]] for key in ("kernel_size", "strides")}
    others = {key: value for key, value in network.items() if key not in ("name", PLANS, CONFIGURATION)}
    heads = len(stages["strides"]) - 3  # besides full resolution; nnU-Net gives the lowest resolution the weight 0
    made: dict[str, Any] = {"name": "DynUNet", **stages, "upsample_kernel_size": stages["strides"][1:]}
    made |= {"filters": architecture["filters"], "norm_name": ["INSTANCE", {"affine": True}]}
    made |= {"deep_supervision": True, "deep_supr_num": heads} if heads > 0 else {}
    return Plans(
        {**made, **others}, _reorder(chosen["patch_size"], axes), tuple(map(float, _reorder(chosen["spacing"], axes)))
    )


def _read(source: str) -> Mapping[str, Any]:
    try:
        content = json.loads(Path(source).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise ConfigError(f"task.network.{PLANS}={source}: {reason}; give the file nnUNetPlans.json") from error
    if not isinstance(content, Mapping) or not isinstance(content.get("configurations"), Mapping):
        raise ConfigError(
            f"task.network.{PLANS}={source}: it has no 'configurations'; give nnUNetPlans.json of nnU-Net 2"
        )
    return content


def _configuration(content: Mapping[str, Any], name: object, source: str) -> dict[str, Any]:
    """The chosen configuration, with the values that it inherits."""
    known: Mapping[str, Any] = content["configurations"]
    chosen = str(name) if name is not None else next((each for each in DEFAULTS if each in known), None)
    merged, seen = dict[str, Any](), list[str]()
    while chosen is not None and chosen not in seen:
        if chosen not in known:
            raise ConfigError(
                f"task.network.{CONFIGURATION}={chosen}: {source} has no such configuration"
                f"{did_you_mean(chosen, known)}; use one of {join_names(list(known))}"
            )
        seen.append(chosen)
        merged = {**known[chosen], **merged}
        chosen = known[chosen].get("inherits_from")
    for key in ("patch_size", "spacing"):
        numbers = merged.get(key)
        if not isinstance(numbers, list) or len(numbers) not in (2, 3):
            raise ConfigError(
                f"{source}: its configuration {seen[0] if seen else ''} has {key}={numbers!r}; expected two or three "
                f"numbers. Set another task.network.{CONFIGURATION}: {join_names(list(known))}"
            )
    return merged


def _architecture(chosen: Mapping[str, Any], source: str) -> dict[str, Any]:
    """`kernel_size`, `strides` (both in the order of the file) and `filters` of each stage."""
    found = _new_architecture(chosen) if "architecture" in chosen else _old_architecture(chosen)
    name = str(found["class"]).rpartition(".")[2]
    if name != "PlainConvUNet":
        raise ConfigError(
            f"{source}: its network is {name}; expected PlainConvUNet, the default of nnU-Net. Give other plans, or "
            "another task.network"
        )
    missing = [key for key in ("kernel_size", "strides", "filters") if not found[key]]
    if missing or not len(found["kernel_size"]) == len(found["strides"]) == len(found["filters"]) > 1:
        raise ConfigError(
            f"{source}: its network needs kernel_sizes, strides and features for each of two or more stages; give "
            "nnUNetPlans.json of nnU-Net 2"
        )
    if set(found["convolutions"]) - {CONVOLUTIONS}:
        raise ConfigError(
            f"{source}: its stages have {sorted(set(found['convolutions']))} convolutions; expected {CONVOLUTIONS} in "
            "each, the default of nnU-Net. Give other plans, or another task.network"
        )
    return found


def _new_architecture(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture in the keys of nnU-Net 2.2 and later."""
    architecture = chosen["architecture"]
    keys = architecture.get("arch_kwargs", {})
    counts = [keys.get(key, CONVOLUTIONS) for key in ("n_conv_per_stage", "n_conv_per_stage_decoder")]
    return {
        "class": architecture.get("network_class_name"),
        "kernel_size": keys.get("kernel_sizes"),
        "strides": keys.get("strides"),
        "filters": keys.get("features_per_stage"),
        "convolutions": [count for each in counts for count in (each if isinstance(each, list) else [each])],
    }


def _old_architecture(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture in the keys of nnU-Net 2.0 and 2.1."""
    strides = chosen.get("pool_op_kernel_sizes")
    first, most = (
        chosen.get(key, default)
        for key, default in (("UNet_base_num_features", FIRST_FEATURES), ("unet_max_num_features", MOST_FEATURES))
    )
    return {
        "class": chosen.get("UNet_class_name"),
        "kernel_size": chosen.get("conv_kernel_sizes"),
        "strides": strides,
        "filters": [min(first * 2**stage, most) for stage in range(len(strides or ()))],
        "convolutions": [
            *chosen.get("n_conv_per_stage_encoder", [CONVOLUTIONS]),
            *chosen.get("n_conv_per_stage_decoder", [CONVOLUTIONS]),
        ],
    }


def _axes(content: Mapping[str, Any], dims: int, source: str) -> list[int]:
    """For each axis of raysim its position in the plans, whose axes are z, y, x in the order of `transpose_forward`."""
    forward = content.get("transpose_forward", [0, 1, 2])
    if sorted(forward) != [0, 1, 2] or (dims == 2 and forward[0] != 0):
        raise ConfigError(
            f"{source}: transpose_forward is {forward}; expected an order of 0, 1, 2, which for 2d begins with 0, "
            "because slices are axial"
        )
    return [forward[3 - dims :].index(axis) for axis in (2, 1, 0)[:dims]]


def _reorder(values: Any, axes: Sequence[int]) -> Any:
    """The numbers of the axes; a single number is that of all axes."""
    return tuple(values[axis] for axis in axes) if isinstance(values, list) else (values,) * len(axes)
