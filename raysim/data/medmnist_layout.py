"""MedMNIST: an `.npz` file with the images and labels of all splits; each image is written to a file of its own."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from raysim.core.errors import ConfigError
from raysim.data.folder_layouts import ScannedCase
from raysim.data.image_formats import Array
from raysim.data.memory_limit import check_memory
from raysim.data.numpy_format import read_array_header

SPLITS = ("train", "val", "test")
CHEST_LABELS = (  # of ChestMNIST, the only set of MedMNIST with several labels; the file has only their numbers
    *("atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia", "pneumothorax"),
    *("consolidation", "edema", "emphysema", "fibrosis", "pleural", "hernia"),
)


def find_medmnist_cases(root: Path, notes: list[str]) -> list[ScannedCase]:
    """The images of the only MedMNIST file in `root`, written to a folder with its name; none without such a file.

    Raises ConfigError for several files, for several labels per image that are not 0 or 1, and if the folder exists.
    """
    files = [path for path in sorted(root.glob("*.npz")) if _is_medmnist(path)]
    if not files:
        return []
    if len(files) > 1:
        raise ConfigError(f"{root} has several files of MedMNIST, {files[0].name} and {files[1].name}; keep one")
    file, folder = files[0], root / files[0].stem
    if folder.exists():
        raise ConfigError(
            f"{folder} exists and is never overwritten; remove or rename it, because the images are written there"
        )
    with zipfile.ZipFile(file) as archive:
        labels = {split: _labels(archive, file, split) for split in SPLITS}
        try:
            cases = [case for split in SPLITS for case in _write_split(archive, file, folder / split, labels[split])]
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    notes.append(f"the {len(cases)} images of {file.name} were written to {folder}")
    return cases


def _write_split(archive: zipfile.ZipFile, file: Path, folder: Path, labels: Array) -> Iterator[ScannedCase]:
    """Write the images of a split to `folder`, which is named as the split."""
    folder.mkdir(parents=True)
    for number, image in enumerate(_images(archive, file, folder.name)):
        path = _write(folder / f"{number:06}", image)
        case = ScannedCase(file.parent.name, path, None, split=folder.name)
        values = labels[number].tolist()
        yield case._replace(label=values[0]) if len(values) == 1 else case._replace(labels=_by_name(file, values))


def _by_name(file: Path, values: Sequence[int]) -> dict[str, int]:
    """The labels of an image by name; by number if the file is not ChestMNIST."""
    is_chest = file.name.startswith("chestmnist") and len(values) == len(CHEST_LABELS)
    names = CHEST_LABELS if is_chest else [f"label_{number}" for number in range(len(values))]
    return dict(zip(names, values, strict=True))


def _is_medmnist(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return {f"{split}_{part}.npy" for split in SPLITS for part in ("images", "labels")} <= {*archive.namelist()}
    except (OSError, zipfile.BadZipFile):
        return False


def _labels(archive: zipfile.ZipFile, file: Path, split: str) -> Array:
    """The class of each image (n, 1), or 0 and 1 of each of its L labels (n, L)."""
    with archive.open(f"{split}_labels.npy") as stream:
        shape, _, dtype = read_array_header(stream)
        check_memory(np.prod(shape, dtype=float) * dtype.itemsize * 2, file.stat().st_size)
        labels = np.frombuffer(stream.read(), dtype).reshape(shape[0], -1).astype(int)
    if labels.shape[1] > 1 and not np.isin(labels, (0, 1)).all():
        wrong = labels[~np.isin(labels, (0, 1))][0]
        raise ConfigError(
            f"{file} has {labels.shape[1]} labels for each image with values such as {wrong}; expected 0 and 1"
        )
    return labels


def _images(archive: zipfile.ZipFile, file: Path, split: str) -> Iterator[Array]:
    """Each image (height, width[, 3]) or (x, y, z)."""
    with archive.open(f"{split}_images.npy") as stream:
        (count, *shape), fortran, dtype = read_array_header(stream)
        if fortran or dtype != np.uint8 or not 2 <= len(shape) <= 3:
            raise ConfigError(f"{file} has images {tuple(shape)} of {dtype}; expected those of MedMNIST, of uint8")
        size = int(np.prod(shape))
        check_memory(2 * size, file.stat().st_size)
        for number in range(count):
            if len(content := stream.read(size)) < size:
                raise ConfigError(f"{file} ends in image {number + 1} of {split}; replace it with an intact file")
            yield np.frombuffer(content, np.uint8).reshape(shape)


def _write(stem: Path, image: Array) -> Path:
    """Write a picture as a PNG file, or a volume as a numpy array; the path of the file."""
    import imagecodecs

    is_picture = image.ndim == 2 or image.shape[2] == 3
    path = stem.with_suffix(".png" if is_picture else ".npy")
    if is_picture:
        path.write_bytes(imagecodecs.png_encode(image))
    else:
        np.save(path, image)
    return path
