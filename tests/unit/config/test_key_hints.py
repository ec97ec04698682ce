"""Keys and options of other programs are refused with what to write instead."""

from __future__ import annotations

import pytest

from raysim.cli.main import main
from raysim.config.key_hints import option_hint
from raysim.config.merge import parse_pairs
from raysim.config.resolve import resolve
from raysim.core.errors import ConfigError


@pytest.mark.parametrize(
    ("pair", "hint"),
    [
        ("gpus=1", "resources.gpus_per_client=1"),
        ("device=cuda", "resources.gpus_per_client=1"),
        ("patience=3", "use early_stopping.patience=5"),
        ("patch_size=[64,64]", "task.data.size"),
        ("augment=flip", "use task.augment"),
        ("algorithm.batch_size=4", "use task.batch_size"),
        ("algorithm.lrr=0.1", "did you mean 'algorithm.lr'"),
        ("lr=0.1", "did you mean 'algorithm.lr'"),
    ],
)
def test_keys_of_other_programs(pair: str, hint: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolve(parse_pairs([pair]))
    assert hint in str(error.value)


def test_the_keys_that_are_named_exist() -> None:
    config = resolve(parse_pairs(["resources.gpus_per_client=1", "resources.cpus_per_client=2", "algorithm.lr=0.01"]))
    assert (config.resources.gpus_per_client, config.resources.cpus_per_client) == (1, 2)
    augment = "task.augment=[{name: RandFlip, prob: 0.5, spatial_axis: 0}]"
    config = resolve(parse_pairs(["task=segmentation", augment, "task.batch_size=8", "task.data.fit=pad"]))
    assert config.task.augment[0]["name"] == "RandFlip"


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        (["--rounds", "3"], "rounds=3"),
        (["--rounds=3"], "rounds=3"),
        (["seed=1", "--min-replies"], "min_replies=VALUE"),
        (["--task.batch_size", "seed=1"], "task.batch_size=VALUE"),
    ],
)
def test_keys_with_dashes(arguments: list[str], written: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert option_hint(arguments).endswith(f": {written}")
    assert main(["run", *arguments]) == 2
    assert f"{written}; see raysim run --help" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "command"),
    [(["--resume", "my runs/a"], "raysim resume 'my runs/a'"), (["--continue"], "raysim resume DIR")],
)
def test_options_that_continue_a_run(arguments: list[str], command: str) -> None:
    assert option_hint(arguments).endswith(f"continues with: {command}")
