"""Exports the network of a finished run: as a torch.export program, as ONNX, or as a MONAI bundle."""

from __future__ import annotations

import logging
import warnings
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from raysim.core.atomic_io import replacing
from raysim.core.errors import ConfigError, RunError
from raysim.federation.exported_network import ExportedNetwork, exported_network
from raysim.federation.monai_bundle import check_bundle, write_bundle
from raysim.federation.trained_run import RoundChoice, open_run

ExportFormat = Literal["torch", "onnx", "bundle"]
SUFFIXES: dict[ExportFormat, str] = {"torch": ".pt2", "onnx": ".onnx", "bundle": "-bundle"}
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-5  # of the largest logit: between the exported program and the network


def export(
    run: str | Path,
    kind: ExportFormat,
    *,
    site: str | None = None,
    use_global: bool = False,
    round: RoundChoice | None = None,
    out: str | Path | None = None,
) -> Path:
    """Write the network with which a finished run predicts at `site`, by default at a new site; returns the path.

    A program (torch, onnx) maps inputs (B, C, *space) or (B, F), prepared as in the run, to logits; B is free. It is
    executed once and compared with the network. The default of `out` is in `exports` of the run. Raises ConfigError,
    before anything is written, for a predictor that is not one network, and for an existing file.
    """
    trained = open_run(run, round)
    network = exported_network(trained, site, use_global=use_global)
    if kind == "onnx":
        _check_onnx_packages()
    if kind == "bundle":
        check_bundle(trained, network)
    name = f"{network.name}-round-{trained.number:04}{SUFFIXES[kind]}"
    path = trained.directory / "exports" / name if out is None else Path(out).absolute()
    if path.exists():
        raise ConfigError(f"--out {path} already exists, and an export never overwrites files; choose another path")
    content = {"torch": _torch_program, "onnx": _onnx_program}[kind](network) if kind != "bundle" else b""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "bundle":
            write_bundle(trained, network, path)
        else:
            with replacing(path) as partial:
                partial.write_bytes(content)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}; choose another --out") from error
    return path


def _check_onnx_packages() -> None:
    if missing := [name for name in ONNX_PACKAGES if find_spec(name) is None]:
        raise ConfigError(f"--format onnx needs {', '.join(missing)}; install them: pip install 'raysim[onnx]'")


def _torch_program(network: ExportedNetwork) -> bytes:
    """The file of a torch.export program, compared with the network."""
    file = BytesIO()
    torch.export.save(_program(network), file)
    loaded = torch.export.load(BytesIO(file.getvalue()))
    _compare(network, loaded.module()(network.example[:1]).detach().numpy(), "torch.export")
    return file.getvalue()


def _onnx_program(network: ExportedNetwork) -> bytes:
    """The file of an ONNX program, executed by onnxruntime and compared with the network."""
    import onnxruntime

    program = _program(network)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns about packages that are not installed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # from torch's own code
        exported: Any = torch.onnx.export(
            program, input_names=["inputs"], output_names=["logits"], dynamo=True, verbose=False
        )
    content = bytes(exported.model_proto.SerializeToString())
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"inputs": network.example[:1].numpy()})
    _compare(network, logits, "ONNX")
    return content


def _program(network: ExportedNetwork) -> torch.export.ExportedProgram:
    """The exported graph, for any number of examples. Raises RunError if torch cannot export the network."""
    batch = torch.export.Dim("batch", min=1)
    try:
        return torch.export.export(network.net, (network.example,), dynamic_shapes=({0: batch},))
    except Exception as error:  # torch raises errors of many types
        reason = " ".join(str(error).split())[:300]
        raise RunError(f"torch.export does not support {type(network.net).__name__}: {reason}") from error


def _compare(network: ExportedNetwork, found: Any, what: str) -> None:
    """Raises RunError if logits of the first example differ by more than TOLERANCE."""
    with torch.no_grad():
        expected = network.net(network.example[:1]).numpy()
    distance = float(np.abs(found - expected).max()) / max(1.0, float(np.abs(expected).max()))
    if distance > TOLERANCE:
        raise RunError(
            f"the {what} program differs from the network by {distance:.1e} of the largest logit; expected at most "
            f"{TOLERANCE:g}. Nothing was written"
        )
