"""The names of networks and losses that are known without an import of MONAI are those of the installed MONAI."""

from __future__ import annotations

import pytest

from raysim.core.errors import ConfigError
from raysim.tasks.library_names import (
    CLASSIFICATION_LOSSES,
    NETWORKS,
    SEGMENTATION_LOSSES,
    check_loss_name,
    check_network_name,
)
from raysim.tasks.losses import list_losses, make_segmentation_loss
from raysim.tasks.networks import find_network, list_networks


def test_the_names_are_those_of_the_installed_monai() -> None:
    assert sorted(NETWORKS) == sorted(list_networks())
    losses = list_losses()
    assert sorted(SEGMENTATION_LOSSES) == sorted(losses["segmentation"])
    assert sorted(CLASSIFICATION_LOSSES) == sorted(losses["classification"])


@pytest.mark.parametrize("name", ["unet", "UNet", "seg_res_net", "ResNet18", "mlp", "own:Net", "folder/own.py:Net"])
def test_networks_that_may_exist(name: str) -> None:
    check_network_name({"name": name})


@pytest.mark.parametrize("name", ["dice", "DiceLoss", "dice_ce", "own:loss"])
def test_losses_that_may_exist(name: str) -> None:
    check_loss_name({"name": name}, SEGMENTATION_LOSSES)


def test_a_name_that_another_version_of_monai_exports_is_left_to_the_import() -> None:
    check_network_name({"name": "TopologySearch"})  # exported by MONAI, and not in NETWORKS
    with pytest.raises(ConfigError, match="unknown network 'TopologySearch'"):
        find_network("TopologySearch")


@pytest.mark.parametrize("name", ["dise", "DiseLoss"])
def test_the_message_is_that_of_the_import(name: str) -> None:
    with pytest.raises(ConfigError) as early:
        check_loss_name({"name": name}, SEGMENTATION_LOSSES)
    with pytest.raises(ConfigError) as late:
        make_segmentation_loss({"name": name})
    assert str(early.value) == str(late.value)
    with pytest.raises(ConfigError) as early:
        check_network_name({"name": name})
    with pytest.raises(ConfigError) as late:
        find_network(name)
    assert str(early.value) == str(late.value)
