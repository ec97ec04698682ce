"""The JSON schema accepts what raysim accepts, refuses what raysim refuses, and equals the file that editors use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from raysim.cli.main import main
from raysim.config.json_schema import run_schema
from raysim.config.merge import read_file
from raysim.config.resolve import resolve
from raysim.config.yaml_loader import load_yaml
from raysim.core.errors import ConfigError
from tests.support.paths import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
FILE = ROOT / "raysim" / "config" / "run_schema.json"
ACCEPTED = [
    "{}",
    "{rounds: 3, cohort: 0.5, backend: local}",
    "{early_stopping: 3}",
    "{early_stopping: {patience: 3, min_gain: 0.01}}",
    "{cohort: {size: 3, dropout: 0.1}, resources: {client_actors: per_site, sites: {A: {gpus: 0.5}}}}",
    "{task: segmentation, algorithm: fedprox, network: unet, data: {table: t.csv}}",
    "{task.data.size: [32, 32], algorithm.lr: 1e-2, task.network.name: unet}",
    "{task: {name: tabular, loss: {name: focal, gamma: 2}, network: mlp}}",
    "{task: {name: segmentation, data.size: [32, 32], augment: [{name: RandFlip, prob: 1}]}}",
    "{algorithm: {name: fcl, finetune: {name: fedprox, mu: 0.1}}}",
    "{algorithm: {name: fcl, finetune: fedprox}}",
    "{algorithm: {name: fedavg, outside: tent}}",
    "{task: {name: segmentation, data: {partition: iid}}}",
]
REFUSED = [
    "{rondus: 3}",
    "{rounds: 0}",
    "{early_stopping: 0}",
    "{early_stopping: true}",
    "{rounds: many}",
    "{backend: slurm}",
    "{algorithm: fedavgg}",
    "{algorithm: {name: fedavg, mu: 0.1}}",
    "{algorithm: {mu: 0.1}}",
    "{algorithm: {name: fcl, finetune: {name: fedavg, mu: 0.1}}}",
    "{task: {name: segmentation, data: {tables: t.csv}}}",
    "{task: {name: segmentation, data: {size: [32]}}}",
    "{task: {name: tabular, augment: []}}",
    "{resources: {gpus: 1}}",
    "{resources: {sites: {A: {gpu: 1}}}}",
    "{cohort: {dropout: 1.0}}",
]


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return run_schema()


def test_the_file_that_editors_use_is_what_the_command_prints(
    schema: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["schema"]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed) == schema
    assert FILE.read_text() == printed, "update it: raysim schema > raysim/config/run_schema.json"
    Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_valid_and_names_the_schema(example: Path, schema: dict[str, Any]) -> None:
    Draft202012Validator(schema).validate(load_yaml(example.read_text(), str(example)))
    first = example.read_text().splitlines()[0]
    assert (example.parent / first.removeprefix("# yaml-language-server: $schema=")).resolve() == FILE


@pytest.mark.parametrize("text", [*ACCEPTED, *REFUSED])
def test_the_schema_and_raysim_agree(text: str, schema: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(text)
    valid = Draft202012Validator(schema).is_valid(load_yaml(text, "the text"))
    assert valid == (text in ACCEPTED)
    if valid:
        resolve(read_file(str(tmp_path / "run.yaml")))
        return
    with pytest.raises(ConfigError):
        resolve(read_file(str(tmp_path / "run.yaml")))


def test_every_key_has_its_description(schema: dict[str, Any]) -> None:
    lr = schema["$defs"]["algorithm.fedprox"]["properties"]["lr"]
    assert lr == {
        "description": "learning rate of the local optimiser",
        "exclusiveMinimum": 0,
        "type": "number",
        "default": 0.001,
    }
    keys = [key for part in (schema, *schema["$defs"].values()) for key in part["properties"].items()]
    assert [name for name, key in keys if name != "name" and not key.get("description")] == []


def test_the_schema_of_one_task_and_one_algorithm() -> None:
    schema = run_schema("tabular", "algorithms.fedprox:FedProx")
    assert set(schema["$defs"]) == {"task.tabular", "algorithm.algorithms.fedprox.FedProx"}
    validator = Draft202012Validator(schema)
    assert validator.is_valid({"task": {"batch_size": 3}, "algorithm": {"mu": 0.1}})
    assert not validator.is_valid({"task": {"augment": []}})
    assert not validator.is_valid({"algorithm": {"nu": 0.1}})
