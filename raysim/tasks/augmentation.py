"""Random augmentation at the site: MONAI's random dictionary transforms by name."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import numpy as np
import torch
from monai.transforms.compose import Compose
from monai.transforms.intensity import dictionary as intensity
from monai.transforms.spatial import dictionary as spatial
from monai.utils.type_conversion import convert_to_tensor
from torch import Tensor

from raysim.core.contracts import Augment, Batch
from raysim.core.errors import ConfigError
from raysim.core.seeding import seeded
from raysim.core.suggestions import squash
from raysim.tasks.factory_lookup import Factory, check_arguments, find_factory, parameters


@dataclass(frozen=True)
class Augmentation:
    """The transforms in turn, each example on its own."""

    transforms: tuple[Any, ...]

    def __call__(self, inputs: Tensor, labels: Tensor, random: np.random.RandomState) -> Batch:
        """The batch, inputs (B, C, *space) and labels (B, 1, *space), changed as `random` has it."""
        # A copy: seeding changes the transforms, which other sites of this process share.
        compose = Compose(copy.deepcopy(self.transforms)).set_random_state(state=random)
        pairs = zip(inputs.clone(), labels.clone(), strict=True)  # cloned: some of MONAI's write in place
        changed = [compose({"image": image, "label": label}) for image, label in pairs]
        images = torch.stack([convert_to_tensor(each["image"], track_meta=False) for each in changed])
        masks = torch.stack([convert_to_tensor(each["label"], track_meta=False) for each in changed])
        return images.to(inputs.dtype), masks.to(labels.dtype)


def augmentation(
    specs: Sequence[Mapping[str, Any]], channels: int, size: Sequence[int], mask: bool = True
) -> Augment | None:
    """The transforms that `specs` name, None if there are none; tried once, so that mistakes show here.

    Spatial ones change image and label, the label without interpolation; where labels are not masks, and for
    those of intensity, the image alone.
    """
    if not specs:
        return None
    image = torch.linspace(0, 1, channels * prod(size)).reshape(1, channels, *size)
    label = torch.zeros(1, 1, *size if mask else (), dtype=torch.uint8)
    certain = Augmentation(tuple(_transform(spec, mask, always=True) for spec in specs))
    for trial in range(4):  # a turn by 180 degrees keeps a shape that one by 90 does not
        with seeded("augmentation", trial):
            try:
                images, labels = certain(image, label, np.random.RandomState(trial))
            except Exception as error:  # whatever a transform dislikes, the user must know
                cause = error.__cause__ or error
                raise ConfigError(f"task.augment fails on an image of size {tuple(size)}: {cause}") from error
        if images.shape != image.shape or labels.shape != label.shape:
            raise ConfigError(
                f"task.augment changes the shape of an image from {tuple(image.shape[1:])} "
                f"to {tuple(images.shape[1:])}; leave out what crops, zooms or turns without keeping the size"
            )
    return Augmentation(tuple(_transform(spec, mask) for spec in specs))


def _transform(spec: Mapping[str, Any], mask: bool, always: bool = False) -> Any:
    names = _random_transforms()
    given = {key: value for key, value in spec.items() if key != "name"}
    if not mask and "keys" in given:
        raise ConfigError(f"task.augment: keys={given['keys']!r}: leave keys out; here only the image may change")
    name = spec.get("name")
    if isinstance(name, str) and squash(f"{name}d") in map(squash, names):
        name += "d"
    maker = find_factory("transform", name, names)
    both = mask and maker.__module__ == spatial.__name__
    filled: dict[str, Any] = {"keys": ["image", "label"] if both else ["image"]}
    default = parameters(maker).get("mode")
    if both and default is not None:
        filled["mode"] = [default.default, "nearest"]
    arguments = filled | given | ({"prob": 1.0} if always and "prob" in parameters(maker) else {})
    check_arguments("transform", maker, arguments)
    _check_probability(given.get("prob", 1.0))
    try:
        return maker(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"transform {maker.__name__} refuses {dict(spec)}: {error}") from error


def _check_probability(prob: object) -> None:
    """Raises ConfigError for what MONAI would quietly cut to 0 or 1."""
    if isinstance(prob, bool) or not isinstance(prob, int | float) or not 0 <= prob <= 1:
        raise ConfigError(f"task.augment: prob={prob!r}: expected a probability, 0 to 1")


@cache
def _random_transforms() -> dict[str, Factory]:
    found = [cls for module in (intensity, spatial) for cls in vars(module).values() if inspect.isclass(cls)]
    own = {intensity.__name__, spatial.__name__}
    return {cls.__name__: cls for cls in found if cls.__name__.startswith("Rand") and cls.__module__ in own}
