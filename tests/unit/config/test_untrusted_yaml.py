"""Untrusted YAML files are refused with a one-line error, without a hang."""

from __future__ import annotations

import pytest

from raysim.config.yaml_loader import load_yaml
from raysim.core.errors import ConfigError

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40))


@pytest.mark.parametrize("text", [LAUGHS, MERGES, "a: &a [*a]", "a: &a {b: *a}"])
def test_aliases_that_unfold_without_limit_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="aliases unfold to more than 1,000,000 values, or an alias contains itself"):
        load_yaml(text, "run.yaml")


@pytest.mark.parametrize("text", ["!!python/object/apply:os.system [id]", "!x 1", "{[1]: 2}", "[" * 5000, "\x1b[31m"])
def test_odd_documents_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_yaml(text, "run.yaml")
    assert "\n" not in str(caught.value)


def test_aliases_work() -> None:
    assert load_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: *a", "") == {
        "a": {"x": 1},
        "b": {"x": 1, "y": 2},
        "c": {"x": 1},
    }


def test_a_long_number_and_many_keys_are_read_in_linear_time() -> None:
    assert load_yaml("1" * 100_000 + "x", "") == "1" * 100_000 + "x"
    keys = ", ".join(f"k{number}: 1" for number in range(2_000))
    assert len(load_yaml(f"{{{keys}}}", "")) == 2_000
    assert [load_yaml(text, "") for text in ("1e-3", "1.", ".5", "1_0.5", "1.5e3")] == [1e-3, 1.0, 0.5, 10.5, 1500.0]
