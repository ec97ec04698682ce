"""Formats exceptions in the code of a user: the cause, the file and the line, and the cure of a refused write."""

from __future__ import annotations

import inspect
import os
import sysconfig
import traceback
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

ENGINE = str(Path(__file__).parents[1])
LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
COPY_ADVICE = (
    "arrays that a method receives are read-only: change a copy, as in array.copy(), and make a changed model with "
    "model.like({**model, NAME: array})"
)


def describe_exception(error: BaseException, source: str = "") -> str:
    """Type, message and cure of an exception, and the line of the user's code that raised it.

    If the exception was not raised in the user's code, as in a call with wrong arguments, `source` replaces the line.
    """
    text = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_of_user(frame.filename)]
    place = f" ({_place(frames[-1].filename, frames[-1].lineno)}, in {frames[-1].name})" if frames else source
    advice = _write_advice(error)
    return f"{text}{place}{f'; {advice}' if advice else ''}"


def format_user_traceback(error: BaseException) -> str:
    """The traceback without the calls of raysim that lead to the user's code."""
    found = traceback.TracebackException.from_exception(error)
    chained: traceback.TracebackException | None = found
    while chained is not None:
        outside = (number for number, frame in enumerate(chained.stack) if not frame.filename.startswith(ENGINE))
        del chained.stack[: next(outside, 0)]
        chained = chained.__cause__ or chained.__context__
    return "".join(found.format())


def source_of(function: Callable[..., Any]) -> str:
    """The place where a function is defined, ` (mine.py, line 12)`; empty if it is not written in Python."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f" ({_place(code.co_filename, code.co_firstlineno)})" if code else ""


def _place(file: str, line: int | None) -> str:
    inside = file.startswith(os.getcwd() + os.sep)
    return f"{os.path.relpath(file) if inside else file}, line {line}"


def _is_of_user(file: str) -> bool:
    return not file.startswith((ENGINE, *LIBRARIES, "<"))


def _write_advice(error: BaseException) -> str:
    if isinstance(error, FrozenInstanceError):
        return "algorithms and states are frozen: make a changed copy with dataclasses.replace"
    # numpy and Python raise these errors without a specific class.
    read_only = isinstance(error, ValueError) and str(error).endswith("read-only")
    model = isinstance(error, TypeError) and str(error).startswith("'Model' object does not support item")
    return COPY_ADVICE if read_only or model else ""
