"""The metadata of a MONAI bundle: versions, inputs and outputs of the network."""

from __future__ import annotations

from typing import Any

import monai
import numpy as np
import torch

from raysim import __version__
from raysim.core.targets import Target
from raysim.federation.exported_network import ExportedNetwork
from raysim.federation.trained_run import TrainedRun
from raysim.tasks.prediction_columns import target_of
from raysim.tasks.segmentation import Segmentation

OUTPUTS = {  # type and format of the outputs
    Target.CLASS: ("probabilities", "classification"),
    Target.LABELS: ("probabilities", "multilabel classification"),
    Target.NUMBER: ("number", "regression"),
}


def bundle_metadata(run: TrainedRun, network: ExportedNetwork) -> dict[str, Any]:
    """The content of metadata.json."""
    channels, *size = run.task.shape
    of_masks = isinstance(run.config.task, Segmentation)
    output_type, output_format = ("image", "segmentation") if of_masks else OUTPUTS[target_of(run.config.task)]
    kind = {"type": "image", "format": "magnitude", "modality": "n/a", "is_patch_data": False, "dtype": "float32"}
    definitions = {str(index): name for index, name in enumerate(run.task.classes)}
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json",
        "version": "0.1.0",
        "changelog": {"0.1.0": f"exported by raysim {__version__}"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"nibabel": "5.2", "pillow": "13.0"},
        "task": run.summary["task"],
        "description": f"{network.description}, trained with {run.summary['algorithm']} in a simulated federation",
        "authors": "",
        "copyright": "",
        "intended_use": "research",
        "network_data_format": {
            "inputs": {
                "image": {
                    **kind,
                    "num_channels": channels,
                    "spatial_shape": size,
                    "value_range": [],
                    "channel_def": {str(number): "image" for number in range(channels)},
                }
            },
            "outputs": {
                "pred": {
                    **kind,
                    "type": output_type,
                    "format": output_format,
                    "num_channels": len(run.task.classes),
                    "spatial_shape": size if of_masks else [],
                    "value_range": [],
                    "channel_def": definitions,
                }
            },
        },
    }
