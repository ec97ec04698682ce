"""Names of the networks and losses of MONAI and raysim, to refuse an unknown name without importing MONAI."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from raysim.core.suggestions import squash
from raysim.tasks.factory_lookup import unknown_name_error

# The names in the tested version of MONAI. Names that another version exports are accepted too.
NETWORKS = (
    *("AHNet", "AttentionUnet", "AutoEncoder", "AutoencoderKL", "BasicUNet", "BasicUNetPlusPlus", "Classifier"),
    *("ControlNet", "Critic", "DAF3D", "DenseNet", "DenseNet121", "DenseNet169", "DenseNet201", "DenseNet264"),
    *("DiNTS", "DiffusionModelUNet", "Discriminator", "DynUNet", "EfficientNet", "EfficientNetBN"),
    *("EfficientNetBNFeatures", "EfficientNetEncoder", "FlexibleUNet", "FullyConnectedNet", "GlobalNet"),
    *("HighResBlock", "HighResNet", "HoVerNet", "HyenaNDUNETR", "LocalNet", "MaskedAutoEncoderViT", "MedNeXt"),
    *("MultiScalePatchDiscriminator", "NaViT", "NetAdapter", "PatchDiscriminator", "RegUNet", "Regressor", "ResNet"),
    *("ResNetEncoder", "ResNetFeatures", "SENet", "SENet154", "SEResNet101", "SEResNet152", "SEResNet50"),
    *("SEResNext101", "SEResNext50", "SPADEAutoencoderKL", "SPADEDiffusionModelUNet", "SPADENet", "SegResNet"),
    *("SegResNetDS", "SegResNetDS2", "SegResNetVAE", "SwinUNETR", "TorchVisionFCModel", "Transchex", "UNETR", "UNet"),
    *("VNet", "VQVAE", "VarAutoEncoder", "VarFullyConnectedNet", "ViT", "ViTAutoEnc", "VoxelMorphUNet", "logistic"),
    *("mlp", "resnet10", "resnet101", "resnet152", "resnet18", "resnet200", "resnet34", "resnet50", "vista3d132"),
)
SEGMENTATION_LOSSES = (
    *("BoundaryLoss", "DiceCELoss", "DiceFocalLoss", "DiceLoss", "FocalLoss", "GeneralizedDiceFocalLoss"),
    *("GeneralizedDiceLoss", "HausdorffDTLoss", "LogHausdorffDTLoss", "MCCLoss", "MaskedDiceLoss"),
    *("SoftDiceclDiceLoss", "SoftclDiceLoss", "TverskyLoss"),
)
CLASSIFICATION_LOSSES = ("CrossEntropyLoss", "FocalLoss")
LABEL_LOSSES = ("BCEWithLogitsLoss", "FocalLoss")
NUMBER_LOSSES = ("HuberLoss", "L1Loss", "MSELoss", "SmoothL1Loss")


def check_network_name(spec: Mapping[str, Any]) -> None:
    """Raises ConfigError for the name of a network that does not exist. Does not import the network."""
    _check_name("network", spec.get("name"), NETWORKS, "networks/nets")


def check_loss_name(spec: Mapping[str, Any], valid: Sequence[str]) -> None:
    """Raises ConfigError for the name of a loss that does not exist. Does not import the loss."""
    name = spec.get("name")
    is_full = isinstance(name, str) and squash(name).endswith("loss")
    _check_name("loss", name, valid if is_full else [each.removesuffix("Loss") for each in valid], "losses")


def _check_name(kind: str, name: object, valid: Sequence[str], package: str) -> None:
    if not isinstance(name, str) or not name or ":" in name:  # checked when it is imported
        return
    if squash(name) in set(map(squash, valid)) or squash(name) in _exported_by_monai(package):
        return
    raise unknown_name_error(kind, name, valid)


@cache
def _exported_by_monai(package: str) -> set[str]:
    """The squashed names in the `__init__.py` of a package of MONAI; names of losses also without `Loss`."""
    spec = find_spec("monai")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    source = Path(spec.submodule_search_locations[0], package, "__init__.py").read_text(encoding="utf-8")
    imports = [node for node in ast.parse(source).body if isinstance(node, ast.ImportFrom)]
    names = {squash(alias.asname or alias.name) for node in imports for alias in node.names}
    return names | {name.removesuffix("loss") for name in names}
