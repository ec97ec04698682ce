"""Every algorithm on patches of images of different sizes: it trains, is evaluated on whole images, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from pydantic import TypeAdapter

from raysim import ConfigError, LocalFleet, Task, federate
from raysim.core.registry import algorithms
from raysim.storage.digest import digest
from raysim.tasks.segmentation import Segmentation
from tests.support.contract import algorithm, client_states
from tests.support.slow import slow_except

SIZES = {"near": (9, 14, 5), "mid": (12, 8, 6), "far": (10, 11, 4)}
QUICK = ("fedavg", "centralized", "fedala", "fedsm", "iopfl", "fcl")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two inside sites and an outside site, with two volumes for training and one for each evaluated split."""
    folder = tmp_path_factory.mktemp("volumes")
    random, lines = np.random.default_rng(0), ["site,split,image,label"]
    for site, size in SIZES.items():
        for number, split in enumerate(("train", "train", "val", "test")):
            label = np.zeros((*size[:2], size[2] + number), np.uint8)
            label[3:7, 2:6, 1:3] = 1
            image = (random.normal(size=label.shape) + 2 * label).astype(np.float32)
            for name, array in (("image", image), ("label", label)):
                nib.save(nib.Nifti1Image(array, np.eye(4)), folder / f"{site}{number}{name}.nii")
            lines.append(f"{site},{split},{site}{number}image.nii,{site}{number}label.nii")
    (folder / "table.csv").write_text("\n".join(lines))
    return folder / "table.csv"


def build(table: Path, **data: Any) -> Task:
    network = {"name": "unet", "channels": [2, 4], "strides": [2], "num_res_units": 0, "norm": "batch"}
    data = {"table": str(table), "cache": str(table.parent / "cache"), "outside": ["far"], "slices": True} | data
    keys = {"data": {"patch": [8, 8], "patches_per_image": 2, **data}, "network": network, "batch_size": 3}
    return TypeAdapter(Segmentation).validate_python(keys).build()


@pytest.mark.parametrize("name", slow_except(sorted(algorithms()), QUICK))
def test_patches_of_slices(name: str, table: Path) -> None:
    task, method = build(table), algorithm(name)
    fleet = LocalFleet(task, seed=0, rounds=2)
    found = list(federate(method, task, fleet, rounds=2))
    again = LocalFleet(task, seed=0, rounds=2)
    repeated = list(federate(method, task, again, rounds=2))
    assert digest(found[-1].state, client_states(fleet)) == digest(repeated[-1].state, client_states(again))
    assert {score.cases for score in found[-1].scores if score.metric == "dice"} <= {1}  # a case is a volume


@pytest.mark.parametrize("name", slow_except(sorted(algorithms()), ()))
def test_patches_of_volumes(name: str, table: Path) -> None:
    task, method = build(table, slices=False, patch=[8, 8, 4]), algorithm(name)
    fleet = LocalFleet(task, seed=0, rounds=2)
    if name in ("fcl", "fclopt", "fedsimclr", "fedrotation"):
        with pytest.raises(ConfigError, match=r"set task.data.slices=true"):
            list(federate(method, task, fleet, rounds=2))
    else:
        assert len(list(federate(method, task, fleet, rounds=2))) == 2
