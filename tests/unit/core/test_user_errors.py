"""Exceptions of user code as text: cause, file and line, advice, and a traceback without the calls of raysim."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from raysim.core.model import Model
from raysim.core.user_errors import COPY_ADVICE, describe_exception, format_user_traceback, source_of

MODEL = Model.of({"w": np.zeros(2)})


@dataclass(frozen=True)
class Frozen:
    rate: float = 1.0


def write_to_array() -> None:
    MODEL["w"][0] = 1


def add_to_array() -> None:
    MODEL["w"].__iadd__(1)


def sort_array() -> None:
    MODEL["w"].sort()


def write_to_model() -> None:
    MODEL["w"] = np.ones(2)  # type: ignore[index]


def write_to_field() -> None:
    Frozen().rate = 2.0  # type: ignore[misc]


def read_text() -> None:
    json.loads("{")


def raised(function: object) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the type is part of the text
        function()  # type: ignore[operator]
    return caught.value


@pytest.mark.parametrize("function", [write_to_array, add_to_array, sort_array, write_to_model])
def test_a_write_to_what_is_read_only_has_the_cure(function: object) -> None:
    assert describe_exception(raised(function)).endswith(f", in {function.__name__}); {COPY_ADVICE}")


def test_a_write_to_a_frozen_field_has_the_cure() -> None:
    assert describe_exception(raised(write_to_field)).endswith("make a changed copy with dataclasses.replace")


def test_the_line_is_that_of_the_user_not_of_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, line = describe_exception(raised(read_text)), read_text.__code__.co_firstlineno
    assert text.startswith("JSONDecodeError: Expecting property name")
    assert re.search(rf"\(.*test_user_errors\.py, line {line + 1}, in read_text\)$", text)
    monkeypatch.chdir(Path(__file__).parent)
    assert f"(test_user_errors.py, line {line + 1}, in read_text)" in describe_exception(raised(read_text))


def test_the_advice_of_a_written_model_works() -> None:
    changed = MODEL.like({**MODEL, "w": MODEL["w"].copy() + 1})
    assert changed["w"].tolist() == [1, 1]


def test_an_error_of_raysim_keeps_its_calls() -> None:
    text = format_user_traceback(raised(lambda: MODEL.like({})))
    assert "in like" in text


def test_builtin_functions_have_no_source() -> None:
    assert source_of(len) == ""
