"""Random augmentation of training batches by MONAI's random dictionary transforms, chosen by name.

MONAI takes longer to import than torch, so it is imported where it is used.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raysim.core.contracts import Augment, Batch
from raysim.core.errors import ConfigError
from raysim.core.seeding import seeded
from raysim.core.suggestions import squash
from raysim.tasks.factory_lookup import Factory, check_arguments, doc_summary, factory_parameters, find_factory


@dataclass(frozen=True)
class Augmentation:
    """Applies the transforms one after another to each example of a batch."""

    transforms: tuple[Any, ...]

    def __call__(self, inputs: Tensor, labels: Tensor, random: np.random.RandomState) -> Batch:
        """The augmented batch: inputs (B, C, *space) and labels (B, 1, *space); `random` supplies all randomness."""
        from monai.transforms.compose import Compose

        # A copy: seeding changes the transforms, and other sites of this process share them.
        compose = Compose(copy.deepcopy(self.transforms)).set_random_state(state=random)
        pairs = zip(inputs.clone(), labels.clone(), strict=True)  # cloned: some MONAI transforms write in place
        with _without_metadata():
            augmented = [compose({"image": image, "label": label}) for image, label in pairs]
        images, masks = (torch.stack([each[key] for each in augmented]) for key in ("image", "label"))
        return images.to(inputs.dtype), masks.to(labels.dtype)


@contextmanager
def _without_metadata() -> Iterator[None]:
    """MONAI's transforms neither record themselves nor an affine, which takes most of the time of a small image."""
    from monai.data.meta_obj import get_track_meta, set_track_meta

    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)


def make_augmentation(
    specs: Sequence[Mapping[str, Any]], channels: int, size: Sequence[int], mask: bool = True
) -> Augment | None:
    """The transforms that `specs` name; None if there are none. Raises ConfigError if they fail on an example.

    Spatial transforms change the image and the label, the label without interpolation. Intensity transforms change
    only the image. If labels are not masks (`mask=False`), all transforms change only the image.
    """
    if not specs:
        return None
    image = torch.linspace(0, 1, channels * prod(size)).reshape(1, channels, *size)
    label = torch.zeros(1, 1, *size if mask else (), dtype=torch.uint8)
    always_applied = Augmentation(tuple(_make_transform(spec, mask, always=True) for spec in specs))
    for attempt in range(4):  # a rotation by 180 degrees keeps the shape, a rotation by 90 degrees may change it
        with seeded("augmentation", attempt):
            try:
                images, labels = always_applied(image, label, np.random.RandomState(attempt))
            except Exception as error:  # transforms raise errors of many types
                cause = error.__cause__ or error
                raise ConfigError(
                    f"task.augment fails on an image of size {tuple(size)}: {cause}; correct the arguments of the "
                    "transform, or remove it"
                ) from error
        if images.shape != image.shape or labels.shape != label.shape:
            raise ConfigError(
                f"task.augment changes the shape of an image from {tuple(image.shape[1:])} "
                f"to {tuple(images.shape[1:])}; remove transforms that crop, zoom or rotate without keeping the size"
            )
    return Augmentation(tuple(_make_transform(spec, mask) for spec in specs))


def list_transforms() -> dict[str, str]:
    """Every random dictionary transform of MONAI, with the first sentence of the documentation of its array version."""
    from monai import transforms

    found = sorted(_random_transforms().items())
    return {name: doc_summary(getattr(transforms, name.removesuffix("d"), factory)) for name, factory in found}


def find_transform(name: object) -> Factory:
    """The transform with this name, with or without its last letter d. Raises ConfigError if there is none."""
    names = _random_transforms()
    if isinstance(name, str) and squash(f"{name}d") in map(squash, names):
        name += "d"
    return find_factory("transform", name, names)


def _make_transform(spec: Mapping[str, Any], mask: bool, always: bool = False) -> Any:
    from monai.transforms.spatial import dictionary as spatial

    given = {key: value for key, value in spec.items() if key != "name"}
    if not mask and "keys" in given:
        raise ConfigError(f"task.augment: keys={given['keys']!r}: remove keys; in this task only the image may change")
    factory = find_transform(spec.get("name"))
    both = mask and factory.__module__ == spatial.__name__
    filled: dict[str, Any] = {"keys": ["image", "label"] if both else ["image"]}
    default = factory_parameters(factory).get("mode")
    if both and default is not None:
        filled["mode"] = [default.default, "nearest"]
    arguments = filled | given | ({"prob": 1.0} if always and "prob" in factory_parameters(factory) else {})
    check_arguments("transform", factory, arguments)
    _check_probability(given.get("prob", 1.0))
    try:
        return factory(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"transform {factory.__name__} does not accept {dict(spec)}: {error}") from error


def _check_probability(prob: object) -> None:
    """Raises ConfigError for a value that MONAI would silently clip to 0 or 1."""
    if isinstance(prob, bool) or not isinstance(prob, int | float) or not 0 <= prob <= 1:
        raise ConfigError(f"task.augment: prob={prob!r}: expected a probability, 0 to 1")


@cache
def _random_transforms() -> dict[str, Factory]:
    from monai.transforms.intensity import dictionary as intensity
    from monai.transforms.spatial import dictionary as spatial

    found = [cls for module in (intensity, spatial) for cls in vars(module).values() if inspect.isclass(cls)]
    modules = {intensity.__name__, spatial.__name__}
    return {cls.__name__: cls for cls in found if cls.__name__.startswith("Rand") and cls.__module__ in modules}
