"""Traversal of payloads: dataclasses, mappings and sequences, down to arrays and plain values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn


def leaves(tree: Any) -> Iterator[Any]:
    """Every value in `tree` that is not a dataclass, mapping or sequence, in a fixed order."""
    if hasattr(tree, "nbytes") or tree is None:
        yield tree
    elif is_dataclass(tree):
        for field in fields(tree):
            yield from leaves(getattr(tree, field.name))
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from leaves(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from leaves(value)
    else:
        yield tree


def nbytes(tree: Any) -> int:
    """The bytes of `tree` on a network: arrays with their size in memory, numbers with 8 bytes, text as UTF-8.

    Names, shapes and class names are not counted, because sender and receiver have them. Raises TypeError for values
    of other types.
    """
    return sum(_leaf_bytes(leaf) for leaf in leaves(tree))


def _leaf_bytes(leaf: Any) -> int:
    if leaf is None:
        return 0
    if isinstance(leaf, str):
        return len(leaf.encode())
    if isinstance(leaf, bytes):
        return len(leaf)
    if isinstance(leaf, bool | int | float):
        return 8
    if hasattr(leaf, "nbytes"):
        return int(leaf.nbytes)
    advice = "; write Reply(weights(net), ...)" if isinstance(leaf, nn.Module) else ""
    raise TypeError(
        f"a {type(leaf).__name__} cannot be sent: a payload may contain models, arrays, numbers, text, "
        f"and dataclasses, mappings or sequences of these{advice}"
    )


def make_readonly(tree: Any) -> Any:
    """The same tree with read-only arrays, as they are after a transfer between processes.

    Raises TypeError for a tensor that requires gradients.
    """
    for leaf in leaves(tree):
        if isinstance(leaf, np.ndarray):
            leaf.flags.writeable = False
        elif isinstance(leaf, Tensor) and leaf.requires_grad:
            raise TypeError("a tensor that requires gradients cannot be sent: detach it, or send `weights(net)`")
    return tree
