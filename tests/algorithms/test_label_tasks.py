"""All methods on several labels and on numbers: trained, or refused with the reason."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest

from raysim import LocalFleet, algorithm_class, federate
from raysim.config.resolve import resolve
from raysim.core.errors import ConfigError
from raysim.core.registry import algorithms
from raysim.federation.validation import check_algorithm
from tests.support.wrong_files import write_data_sets

ROUNDS = 4  # FedSM-extra needs four
SHORT = {"fedsm": {"selector_steps": 2}}
PRETRAINED = {"fcl", "fclopt", "fedrotation", "fedsimclr"}  # pre-training does not support encoders of classifiers
REFUSED = {"fedrod": "balances the softmax by class frequencies", "iopfl": "lowers the entropy of the softmax"}
DATA: dict[str, dict[str, Any]] = {"multilabel": {"labels": ["edema", "effusion"]}, "regression": {"target": "age"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("findings")
    write_data_sets(made)
    return made


def config(folder: Path, task: str, algorithm: dict[str, Any]) -> Any:
    data = {"table": str(folder / "findings.csv"), "cache": str(folder / "cache"), "outside": ["b"], **DATA[task]}
    network = {"name": "classifier", "channels": [2]}
    keys = {"name": task, "data": data, "network": network, "batch_size": 2, "metrics": ["accuracy"]}
    keys |= {"metrics": ["mae"]} if task == "regression" else {}
    return resolve({"task": keys, "algorithm": algorithm})


@pytest.mark.parametrize("task", DATA)
@pytest.mark.parametrize("name", sorted(set(algorithms()) - PRETRAINED - set(REFUSED)))
def test_methods_train(name: str, task: str, folder: Path) -> None:
    built = config(folder, task, {"name": name, **SHORT.get(name, {})})
    prepared = built.task.build()
    with warnings.catch_warnings(action="ignore"):
        check_algorithm(built.algorithm, prepared, 0, ROUNDS)
        fleet = LocalFleet(prepared, seed=0, rounds=ROUNDS)
        *_, last = federate(built.algorithm, prepared, fleet, rounds=ROUNDS)
    assert last.loss is None or math.isfinite(last.loss)
    main = next(iter(prepared.score.better))
    assert any((score.site, score.metric) == ("a", main) for score in last.scores)


@pytest.mark.parametrize("name", REFUSED)
def test_methods_that_need_classes_are_refused(name: str, folder: Path) -> None:
    built = config(folder, "multilabel", {"name": name})
    message = f"algorithm={name} {REFUSED[name]}.*but task=multilabel predicts several labels of an image; use another"
    with pytest.raises(ConfigError, match=message):
        check_algorithm(built.algorithm, built.task.build(), 0, ROUNDS)
    assert algorithm_class(name).__name__ == type(built.algorithm).__name__


@pytest.mark.parametrize("outside", ["tent", "sar"])
def test_entropy_at_outside_sites_is_refused(outside: str, folder: Path) -> None:
    built = config(folder, "regression", {"name": "fedavg", "outside": outside})
    with pytest.raises(ConfigError, match=f"algorithm.outside={outside} lowers the entropy.*predicts a number"):
        check_algorithm(built.algorithm, built.task.build(), 0, ROUNDS)
