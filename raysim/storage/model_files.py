"""Writes models/: complete weights that `load_state_dict` accepts, and a README with the code that loads them."""

from __future__ import annotations

import ast
import shutil
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from raysim.core.atomic_io import replacing, write_text
from raysim.core.contracts import Task
from raysim.core.model import Model
from raysim.core.network_factories import base_factory
from raysim.core.targets import Target

GLOBAL_FILE = "global.safetensors"
FROM_CONFIG = """\
import yaml
from raysim import load_config
from safetensors.torch import load_file

network = load_config(yaml.safe_load(open("../config.yaml"))).task.build().network()"""
README = """\
# Models

{round}. The files have all parameters and buffers of the network, unless the table says otherwise:

| file | model |
|---|---|
{rows}

To load one, in this folder:

```python
{network}
network.load_state_dict(load_file("{example}"))
network.eval()
```

Inputs: ({shape}), prepared as `task.data` in `../config.yaml` describes. Outputs: {outputs}.
{notes}"""

OUTPUTS = {
    Target.CLASS: "logits of {} classes",
    Target.LABELS: "logits of {} labels",
    Target.NUMBER: "y; the number is offset + unit * y with `task.data.target_scale` (`computed` in `../summary.json`)",
}


class ModelFiles:
    """Replaces models/ of the run in `directory`. Without a model, no folder is written."""

    def __init__(self, directory: Path) -> None:
        self.folder = directory / "models"
        self._rows: dict[str, str] = {}
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, file: str, model: Model, description: str) -> None:
        """Write `model` to `file`, a path in the folder."""
        path = self.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        write_model(path, model)
        self._rows[file] = description

    def close(self, task: Task, round: str, notes: list[str]) -> None:
        """Write README.md. `round` is the phrase that names the round of the models."""
        if not self._rows:
            return
        text = README.format(
            round=round,
            rows="\n".join(f"| `{file}` | {description} |" for file, description in self._rows.items()),
            network=network_code(task),
            example=next(iter(self._rows)),
            shape=", ".join(map(str, ("B", *task.shape))),
            outputs=OUTPUTS[task.target].format(task.classes),
            notes="".join(f"\n{note}\n" for note in notes),
        )
        write_text(self.folder / "README.md", text)


def write_model(path: Path, model: Model) -> None:
    """Write `model` as safetensors, atomically."""
    with replacing(path) as partial_path:
        save_file({name: np.asarray(array, order="C") for name, array in model.items()}, partial_path)


def network_code(task: Task) -> str:
    """Python code that creates the network and imports `load_file`; without raysim if class and arguments are known."""
    factory = base_factory(task.network)
    if not (isinstance(factory, partial) and _is_importable(factory.func) and _is_literal(factory.keywords)):
        return FROM_CONFIG
    name, arguments = factory.func.__name__, (f"{key}={value!r}" for key, value in factory.keywords.items())
    imports = f"from {factory.func.__module__} import {name}\nfrom safetensors.torch import load_file"
    return f"{imports}\n\nnetwork = {name}({', '.join(arguments)})"


def _is_importable(function: object) -> bool:
    module, name = getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
    return name.isidentifier() and getattr(sys.modules.get(module), name, None) is function


def _is_literal(arguments: Mapping[str, object]) -> bool:
    try:
        return bool(ast.literal_eval(repr(dict(arguments))) == arguments)
    except (ValueError, SyntaxError):
        return False
