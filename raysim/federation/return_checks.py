"""Checks of what the methods of an algorithm return. Each error states the cure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from raysim.core.contracts import Metrics, PredictionSet, Reply
from raysim.core.errors import RunError
from raysim.core.model import Model


class ReplyError(RunError):
    """The reply of a client function has a wrong type."""


def check_reply(reply: Any, source: str = "") -> None:
    """Raises ReplyError if `reply` has a wrong type, and RunError for a wrong value. `source`: the client function."""
    if not isinstance(reply, Reply):
        raise ReplyError(
            f"a client function{source} must return a Reply, not {type(reply).__name__}; write return Reply(...)"
        )
    sent = "a network" if isinstance(reply.payload, nn.Module) else ""
    if hasattr(reply.payload, "_metadata"):  # torch marks the result of state_dict() with it
        sent = "net.state_dict()"
    if sent:
        raise ReplyError(f"a client function{source} must not send {sent}; write Reply(weights(net), ...), a Model")
    if not math.isfinite(weight := _number(reply.weight, "Reply.weight")) or weight < 0:
        raise RunError(f"Reply.weight={weight}: expected a finite number of at least 0, such as len(site.data.train)")
    check_metrics(reply.metrics, "Reply.metrics")


def check_round(result: Any, name: str) -> tuple[Any, Metrics]:
    """State and metrics that `name`, the class of the algorithm, returned from `round`. Raises RunError if wrong."""
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], Mapping):
        found = f"a tuple of {len(result)}" if isinstance(result, tuple) else type(result).__name__
        raise RunError(
            f"{name}.round must return the state and a dictionary of metrics, not {found}; write return state, {{}}"
        )
    check_state(result[0], f"{name}.round")
    check_metrics(result[1], f"the metrics of {name}.round")
    return result[0], dict(result[1])


def check_state(state: Any, where: str) -> None:
    """Raises RunError if `state` has no property `model` that is a Model or None."""
    if not hasattr(state, "model") or not isinstance(state.model, Model | None):
        raise RunError(
            f"{where} must return a Model, such as weights(net), or a frozen dataclass with a property `model` that is "
            f"a Model or None, not {type(state).__name__}"
        )


def check_metrics(metrics: Any, where: str) -> None:
    """Raises RunError if `metrics` is not a mapping of names to finite numbers."""
    if not isinstance(metrics, Mapping):
        raise RunError(f"{where} must be a dictionary such as {{'loss': 0.5}}, not {type(metrics).__name__}")
    for name, value in metrics.items():
        if not isinstance(name, str):
            raise RunError(f"{where} has the name {name!r}: expected text")
        if not math.isfinite(number := _number(value, f"{where}[{name!r}]")):
            raise RunError(f"{where}[{name!r}] is {number}: expected a finite number; return no metric without a value")


def check_predictor(predictor: Any, name: str) -> None:
    """Raises RunError if `predictor`, returned by the algorithm class `name`, is not one, a set of them, or None."""
    found = [predictor.main, *predictor.others.values()] if isinstance(predictor, PredictionSet) else [predictor]
    if isinstance(predictor, PredictionSet) and "global" in predictor.others:
        raise RunError(f"{name}.predictor: 'global' is the name of the global model; use another name in others")
    for predict in found:
        if predict is not None and not callable(predict):
            raise RunError(
                f"{name}.predictor must return a network or a function that returns logits, not "
                f"{type(predict).__name__}; write return site.predict_module(model)"
            )
        if isinstance(predict, nn.Module) and any(map(_is_active_dropout, predict.modules())):
            raise RunError(
                f"{name}.predictor returned a network in training mode, whose dropout makes predictions random; write "
                "return site.predict_module(model), or call net.eval()"
            )


def _is_active_dropout(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Dropout | nn.Dropout2d | nn.Dropout3d) and layer.training and layer.p > 0


def _number(value: Any, where: str) -> float:
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise RunError(f"{where} is {value!r:.80}: expected a single number") from None
