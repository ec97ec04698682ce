"""Hints for keys of other programs, such as `gpus` and `patience`: the keys of raysim to use instead."""

from __future__ import annotations

from collections.abc import Mapping

from raysim.core.formatting import quote_path
from raysim.core.suggestions import squash

GPUS = "resources.gpus_per_client=1 gives each client actor a GPU"
EARLY_STOPPING = "use early_stopping.patience=5, a number of evaluations, and early_stopping.min_gain"
PATCHES = (
    "segmentations have task.data.patch, for example task.data.patch=[96,96,96]; classifications use whole images: set "
    "task.data.size"
)
AUGMENT = "use task.augment, for example 'task.augment=[{name: RandFlip, prob: 0.5, spatial_axis: 0}]'"
KEY_HINTS: Mapping[str, str] = {
    **dict.fromkeys(("gpu", "gpus", "numgpus", "device", "devices", "cuda", "accelerator"), GPUS),
    **dict.fromkeys(("earlystopping", "earlystop", "patience", "mindelta", "mingain"), EARLY_STOPPING),
    **dict.fromkeys(("patchsize", "patch", "cropsize", "roisize"), PATCHES),
    **dict.fromkeys(("augment", "augmentation", "augmentations", "transforms"), AUGMENT),
    "batchsize": "use task.batch_size",
    **dict.fromkeys(("cpus", "numcpus", "workers", "numworkers"), "use resources.cpus_per_client=2"),
    **dict.fromkeys(("clients", "numclients", "numsites"), "use cohort.size for the sites of a round, and "
                    "task.data.partition.sites for the number of sites made from one table"),
}  # fmt: skip


def key_hint(key: str) -> str:
    """` (use resources.cpus_per_client=2)` for a key such as `cpus`; empty for a key without a hint."""
    hint = KEY_HINTS.get(squash(key.rpartition(".")[2]))
    return f" ({hint})" if hint else ""


def option_hint(arguments: list[str]) -> str:
    """`; write rounds=3` for the arguments `--rounds 3` or `--rounds=3`: keys are not options."""
    position = next(index for index, argument in enumerate(arguments) if argument.startswith("-"))
    name, equals, value = arguments[position].lstrip("-").partition("=")
    following = arguments[position + 1 : position + 2]
    if not equals and following and not following[0].startswith("-") and "=" not in following[0]:
        value = following[0]
    if name in ("resume", "continue"):
        return f"; an interrupted run continues with: raysim resume {quote_path(value) if value else 'DIR'}"
    return f"; keys are written without dashes: {name.replace('-', '_')}={value or 'VALUE'}"
