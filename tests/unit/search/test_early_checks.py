"""Typing errors in the arguments of a search with a named space, found before the space is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from raysim.config.merge import parse_pairs
from raysim.core.errors import ConfigError
from raysim.search.distribution_text import parse_arguments
from raysim.search.early_checks import check_arguments_of_named_space
from raysim.search.space_files import installed_spaces, space_file


def check(path: Path, *arguments: str, keys: tuple[str, ...] = ()) -> None:
    check_arguments_of_named_space(path, parse_arguments(arguments), {}, parse_pairs(keys))


@pytest.mark.parametrize("name", installed_spaces())
def test_an_unknown_key_beside_a_shipped_space_is_refused(name: str) -> None:
    check(space_file(name), "task.batch_size=choice(1,2)")
    with pytest.raises(ConfigError, match=r"unknown key 'task.batchsize' \(did you mean 'task.batch_size'\?\)"):
        check(space_file(name), "task.batchsize=choice(1,2)")


def test_keys_are_checked_with_the_algorithms_and_fixed_values_of_the_space(tmp_path: Path) -> None:
    check(space_file("fedsm"), "algorithm.pull=uniform(0.2,1)")
    with pytest.raises(ConfigError, match="unknown key"):
        check(space_file("fedsm"), "algorithm.mu=uniform(0.2,1)")
    methods = space_file("methods")
    check(methods, "algorithm.fedsm.pull=uniform(0.2,1)", keys=("algorithm.epochs=2", "algorithm.ditto.lam=1"))
    check(methods, "algorithm.mu=uniform(0.2,1)", keys=("algorithm=fedprox",))
    check(methods, "algorithm=choice(fedprox,moon)", "algorithm.moon.mu=uniform(0.2,1)")
    with pytest.raises(ConfigError, match="is a key of the algorithm moon, which is not searched"):
        check(methods, "algorithm.moon.mu=uniform(0.2,1)")
    with pytest.raises(ConfigError, match="given twice"):
        check(space_file("fedsm"), "algorithm.lr=uniform(0.2,1)", keys=("algorithm.lr=0.1",))
    space = tmp_path / "space.py"
    space.write_text("SPACE = {'task.name': 'tabular', 'algorithm.lr': tune.choice([0.1])}")
    check(space, "task.data.features=choice([a],[a,b])")


@pytest.mark.parametrize(
    "text",
    [
        "SPACE = dict(task='tabular')",
        "SPACE = {**more}",
        "SPACE = {'task': name}",
        "SPACE = {'task': chosen()}",
        "SPACE = {}\nSPACE['task'] = 'tabular'",
        "SPACE: dict = {'task': 'tabular'}",
        "SPACE = {",
        "",
    ],
)
def test_beside_a_space_that_must_be_run_nothing_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "space.py"
    path.write_text(text)
    check(path, "task.data.features=choice([a],[a,b])")
