"""Writes a MONAI bundle: the network, its weights, and the preparation of images as MONAI transforms.

The bundle needs only MONAI (https://docs.monai.io/en/stable/bundle_intro.html), not raysim.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import monai
import torch

from raysim import __version__
from raysim.core.atomic_io import write_json, write_text
from raysim.core.errors import ConfigError
from raysim.core.targets import Target
from raysim.data import resize
from raysim.federation import bundle_transforms
from raysim.federation.bundle_metadata import bundle_metadata
from raysim.federation.exported_network import ExportedNetwork
from raysim.federation.trained_run import TrainedRun
from raysim.tasks.classification import Classification
from raysim.tasks.image_config import ImageData
from raysim.tasks.multilabel import MultiLabel
from raysim.tasks.prediction_columns import target_of
from raysim.tasks.regression import Regression
from raysim.tasks.segmentation import Segmentation

Config = dict[str, Any]
IMAGE = {"keys": "image"}
PERCENTILE = {"b_min": 0, "b_max": 1, "clip": True, "channel_wise": True}
INTENSITY: dict[str, Config | None] = {  # as in INTENSITY_SCALING
    "zscore": {"_target_": "NormalizeIntensityd", **IMAGE, "channel_wise": True},
    "zscore_nonzero": {"_target_": "NormalizeIntensityd", **IMAGE, "channel_wise": True, "nonzero": True},
    "minmax": {"_target_": "ScaleIntensityd", **IMAGE, "minv": 0, "maxv": 1, "channel_wise": True},
    "percentile": {"_target_": "ScaleIntensityRangePercentilesd", **IMAGE, "lower": 1, "upper": 99, **PERCENTILE},
    "unit": {"_target_": "ScaleIntensityRanged", **IMAGE, "a_min": 0, "a_max": 255, "b_min": 0, "b_max": 1},
    "none": None,
}
PICTURES, VOLUMES = ("png", "jpg", "jpeg", "tif", "tiff", "bmp"), ("nii", "nii.gz")
START = ["$@load", "$@network.eval()"]
README = """\
# {description}

Exported by raysim {version} from {run}, round {round}. Run it on the images in a folder:

```
python -m monai.bundle run --config_file configs/inference.json --bundle_root . --dataset_dir FOLDER --output_dir OUT
```

in the folder of the bundle, with `pip install monai=={monai} fire nibabel pillow`. Outputs: {outputs}.
"""


def check_bundle(run: TrainedRun, network: ExportedNetwork) -> None:
    """Raises ConfigError for a task or a network that a bundle cannot contain."""
    config, factory = run.config.task, network.factory
    other = "use --format torch or --format onnx"
    if not isinstance(config, Segmentation | Classification | MultiLabel | Regression):
        raise ConfigError(f"--format bundle needs a task of images, and the run has task={config.name}; {other}")
    if not isinstance(config, Segmentation) and config.data.slices:
        raise ConfigError(f"--format bundle does not support task={config.name} with task.data.slices=true; {other}")
    if len(config.data.image_columns) > 1:
        raise ConfigError(f"--format bundle reads one image for each case, not task.data.image_columns; {other}")
    if not (isinstance(factory, partial) and factory.func.__module__.startswith("monai.")):
        raise ConfigError(f"--format bundle needs a network of MONAI, because it runs without other code; {other}")
    if config.data.crop_nonzero or (config.data.clip and config.data.intensity not in ("ct", "window")):
        key = "crop_nonzero=true" if config.data.crop_nonzero else f"clip with intensity={config.data.intensity}"
        raise ConfigError(f"--format bundle does not support task.data.{key}; {other}")
    if isinstance(config, Segmentation) and config.window.mirror:
        raise ConfigError(f"--format bundle does not support task.window.mirror, which MONAI lacks; {other}")
    if len(run.task.shape) == 3 and not config.data.slices and run.task.shape[0] not in (1, 3):
        raise ConfigError(f"--format bundle reads pictures with 1 or 3 channels, not {run.task.shape[0]}; {other}")


def write_bundle(run: TrainedRun, network: ExportedNetwork, folder: Path) -> None:
    """Write the bundle to the new `folder`, which gets its final name when all files are written."""
    partial_folder = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    for name in ("configs", "models", "scripts", "docs"):
        (partial_folder / name).mkdir(parents=True)
    torch.save(network.net.state_dict(), partial_folder / "models" / "model.pt")
    write_json(partial_folder / "configs" / "inference.json", inference_config(run, network))
    write_json(partial_folder / "configs" / "metadata.json", bundle_metadata(run, network))
    write_text(partial_folder / "scripts" / "__init__.py", "")
    for module, name in ((resize, "resize"), (bundle_transforms, "transforms")):
        source = Path(str(module.__file__)).read_text()
        write_text(
            partial_folder / "scripts" / f"{name}.py",
            source.replace("raysim.data.resize import", "scripts.resize import"),
        )
    text = README.format(
        description=f"{network.description[0].upper()}{network.description[1:]}",
        version=__version__,
        run=run.directory.name,
        round=run.number,
        monai=monai.__version__,
        outputs=_describe_outputs(run),
    )
    write_text(partial_folder / "docs" / "README.md", text)
    partial_folder.rename(folder)


def _describe_outputs(run: TrainedRun) -> str:
    if isinstance(run.config.task, Segmentation):
        return "a mask of the size and position of each image"
    if target_of(run.config.task) is Target.NUMBER:
        return f"predictions.csv with {', '.join(run.task.classes)}, in the unit of the labels"
    return f"predictions.csv with the probabilities of {', '.join(run.task.classes)}, in this order"


def inference_config(run: TrainedRun, network: ExportedNetwork) -> Config:
    """The content of inference.json."""
    suffixes = VOLUMES if _reads_volumes(run) else PICTURES
    factory: Any = network.factory
    network_def = {"_target_": f"{factory.func.__module__}.{factory.func.__qualname__}", **factory.keywords}
    return {
        "imports": ["$import os", "$import torch", "$from PIL import ImageOps"],
        "bundle_root": ".",
        "dataset_dir": "$os.path.join(@bundle_root, 'images')",
        "output_dir": "$os.path.join(@bundle_root, 'predictions')",
        "suffixes": list(suffixes),
        "images": "$sorted(os.path.join(@dataset_dir, name) for name in os.listdir(@dataset_dir) "
        "if name.lower().endswith(tuple('.' + suffix for suffix in @suffixes)))",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network_def": _plain(network_def),
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": list(preprocessing(run))},
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': path} for path in @images]",
            "transform": "@preprocessing",
        },
        "inferer": _inferer(run),
        "predict": "$torch.no_grad()(lambda image: @inferer(image[None].to(@device), @network)[0].cpu())",
        "load": "$@network.load_state_dict(torch.load(os.path.join(@bundle_root, 'models', 'model.pt'), "
        "map_location=@device, weights_only=True))",
        **(_mask_output(run) if isinstance(run.config.task, Segmentation) else _table_output(run)),
    }


def _reads_volumes(run: TrainedRun) -> bool:
    return len(run.task.shape) == 4 or bool(run.config.task.data.slices)


def preprocessing(run: TrainedRun) -> list[Config]:
    """The transforms that prepare an image, in the order of CasePreparation."""
    data: ImageData = run.config.task.data
    steps: list[Config | None] = []
    if _reads_volumes(run):
        steps += [
            {"_target_": "LoadImaged", **IMAGE, "reader": "NibabelReader", "ensure_channel_first": True},
            {"_target_": "Orientationd", **IMAGE, "axcodes": "RAS", "labels": [["L", "R"], ["P", "A"], ["I", "S"]]},
        ]
        if data.spacing is not None:
            steps.append(
                {
                    "_target_": "Spacingd",
                    **IMAGE,
                    "pixdim": _spacing(data),
                    "mode": "bilinear",
                    "dtype": "$torch.float32",
                }
            )
    else:
        grey = "up if up.mode in ('L', 'I;16', 'I', 'F') else up.convert('L')"
        convert = "up.convert('RGB')" if run.task.shape[0] == 3 else grey
        upright = f"$lambda im: (lambda up: {convert})(ImageOps.exif_transpose(im))"
        reader = {"_target_": "PILReader", "converter": upright}
        steps += [
            {"_target_": "LoadImaged", **IMAGE, "reader": reader, "ensure_channel_first": True},
            {"_target_": "Transposed", **IMAGE, "indices": [0, 2, 1]},  # MONAI reads pictures as (width, height)
        ]
    steps.append(_intensity(data))
    if data.size is not None and data.fit == "resize":
        steps.append({"_target_": "scripts.transforms.ResizeAveragedd", **IMAGE, "spatial_size": list(data.size)})
    elif data.size is not None:
        size = [*data.size, *[-1] * data.slices]
        steps.append({"_target_": "ResizeWithPadOrCropd", **IMAGE, "spatial_size": size, "mode": "minimum"})
    return [step for step in steps if step is not None]


def _intensity(data: ImageData) -> Config | None:
    """The scaling of intensities. MONAI's range transform also limits and shifts values."""
    preparation = data.preparation(None)
    if preparation.clip is None or preparation.scale is None:
        return INTENSITY[data.intensity]
    (low, high), (zero, one) = preparation.clip, preparation.scale
    new = {"b_min": (low - zero) / one, "b_max": (high - zero) / one, "clip": True}
    return {"_target_": "ScaleIntensityRanged", **IMAGE, "a_min": low, "a_max": high, **new}


def _spacing(data: ImageData) -> list[float]:
    """The spacing of the three axes; -1 keeps that of the file."""
    spacing = list(data.preparation(None).spacing or ())
    return [*spacing, *[-1.0] * (3 - len(spacing))]


def _inferer(run: TrainedRun) -> Config:
    data: Any = run.config.task.data
    size: Config = {"roi_size": list(run.task.shape[1:])}
    if getattr(data, "patch", None):
        window = run.config.task.window
        mode = "gaussian" if window.gaussian else "constant"
        size |= {"sw_batch_size": window.batch_size, "overlap": window.overlap, "mode": mode}
    else:
        size["sw_batch_size"] = int(run.config.task.batch_size)
    if data.slices:
        return {"_target_": "SliceInferer", "spatial_dim": 2, **size}
    return {"_target_": "SlidingWindowInferer", **size} if "overlap" in size else {"_target_": "SimpleInferer"}


def _table_output(run: TrainedRun) -> Config:
    """The steps that write a table with the probabilities or the number of each image."""
    output, target = "@predict(case['image'])", target_of(run.config.task)
    if target is Target.NUMBER:
        offset, unit = run.config.task.data.target_scale
        output = f"{offset} + {unit} * {output}"
    else:
        output = f"torch.sigmoid({output})" if target is Target.LABELS else f"torch.softmax({output}, 0)"
    return {
        "saver": {"_target_": "CSVSaver", "output_dir": "@output_dir"},
        "run": [
            *START,
            f"$[@saver.save({output}, {{'filename_or_obj': path}}) for case, path in zip(@dataset, @images)]",
            "$@saver.finalize()",
        ],
    }


def _mask_output(run: TrainedRun) -> Config:
    """The steps that write a mask for each image."""
    config, volumes = run.config.task, _reads_volumes(run)
    steps: list[Config] = []
    if config.data.size is not None and config.data.fit == "resize":
        steps.append({"_target_": "scripts.transforms.RestoreSized", "keys": "pred", "orig_key": "image"})
    values = [int(value) for value in run.task.classes.values()]
    save: Config = {"output_dir": "@output_dir", "output_postfix": "", "separate_folder": False, "resample": False}
    save |= {"output_dtype": "$'uint8'" if max(values) < 256 else "$'uint16'"}
    save |= {"output_ext": ".nii.gz"} if volumes else {"output_ext": ".png", "writer": "PILWriter"}
    steps += [
        {
            "_target_": "Invertd",
            "keys": "pred",
            "transform": "@preprocessing",
            "orig_keys": "image",
            "nearest_interp": False,
        },
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        {
            "_target_": "MapLabelValued",
            "keys": "pred",
            "orig_labels": list(range(len(values))),
            "target_labels": values,
        },
        {"_target_": "SaveImaged", "keys": "pred", **save},
    ]
    return {
        "postprocessing": {"_target_": "Compose", "transforms": steps},
        "run": [
            *START,
            "$[@postprocessing({**case, 'pred': @predict(case['image'])}) for case in @dataset]",
        ],
    }


def _plain(value: Any) -> Any:
    """`value` with lists instead of tuples, as JSON has them."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
