"""The files in models/: complete weights of the best round, the code in README.md, and methods without one network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from algorithms.fedavg import FedAvg
from algorithms.fedbn import FedBN
from algorithms.fedsm import FedSM
from algorithms.localonly import LocalOnly
from raysim import Model, PredictionSet, Site, Task, task_class
from raysim.core.events import Notice
from raysim.storage import checkpoint
from raysim.storage.model_files import FROM_CONFIG, network_code
from tests.support import toy
from tests.support.toy_runs import SGD, digest, on_local
from tests.unit.federation.test_best_round import run_plan, summary, task


def models(out: Path) -> list[str]:
    return sorted(str(path.relative_to(out / "models")) for path in (out / "models").rglob("*") if path.is_file())


def synthetic() -> Task:
    data = {"sites": 2, "outside": [], "cases": 4, "val": 2, "test": 2, "size": (16, 16)}
    network = {"name": "unet", "channels": (4, 8), "num_res_units": 0, "norm": "batch"}
    built = task_class("synthetic")
    data_class = type(built().data)
    made: Task = built(data=data_class(**{**data, "outside": ()}), network=network).build()
    return made


def readme_network(out: Path, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """The network that the code in README.md loads, in the folder of the file."""
    monkeypatch.chdir(out / "models")
    (code,) = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line]) == 5
    names: dict[str, Any] = {}
    exec(code, names)
    network: torch.nn.Module = names["network"]
    return network


def test_the_global_model_of_the_best_round(tmp_path: Path) -> None:
    points = {"a": ((1, 2), (2, 3)), "b": ((1, 1), (3, 2))}
    on_local(run_plan(tmp_path, task=toy.task(points, network=toy.Scaled, val={"a": points["a"]})))
    assert models(tmp_path) == ["README.md", "global.safetensors"]
    net, best = toy.Scaled(), summary(tmp_path)["best"]
    net.load_state_dict(load_file(tmp_path / "models" / "global.safetensors"), strict=True)
    kept = checkpoint.read(tmp_path / "best" / f"round_{best['round']:04d}").state
    assert all(torch.equal(value, torch.from_numpy(kept[name].copy())) for name, value in net.state_dict().items())
    text = (tmp_path / "models" / "README.md").read_text()
    assert f"After round {best['round']}, the best by inside/val/distance: {best['value']:.4f}" in text


def test_without_a_best_round_the_models_are_those_of_the_last(tmp_path: Path) -> None:
    on_local(run_plan(tmp_path, task=task(val={}), metric="inside/test/distance"))
    found = load_file(tmp_path / "models" / "global.safetensors")
    kept = checkpoint.read(tmp_path / "checkpoints" / "round_0008").state
    assert (found["weight"].item(), found["bias"].item()) == toy.line(kept)
    assert "After round 8, the last one; no best round" in (tmp_path / "models" / "README.md").read_text()


def test_personal_models(tmp_path: Path) -> None:
    personal = toy.task({"a": toy.A, "b": toy.B}, val={"a": ((1, 1),)})
    events = on_local(run_plan(tmp_path, LocalOnly(**SGD), task=personal))
    assert models(tmp_path) == ["README.md", "sites/a.safetensors", "sites/b.safetensors"]
    best = summary(tmp_path)["best"]["round"]
    assert best < 8
    kept = checkpoint.read(tmp_path / "best" / f"round_{best:04d}").client_states
    for site in "ab":
        found = load_file(tmp_path / "models" / "sites" / f"{site}.safetensors")
        assert (found["weight"].item(), found["bias"].item()) == toy.line(kept[site])
    assert digest(events) != digest(
        on_local(run_plan(tmp_path / "short", LocalOnly(**SGD), task=personal, rounds=best))
    )


def test_the_files_of_a_real_network_load_strictly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = synthetic()
    on_local(run_plan(tmp_path, FedBN(), task=real, metric="inside/val/dice", rounds=1))
    assert models(tmp_path) == [
        *("README.md", "global.safetensors", "sites/site-01.safetensors", "sites/site-02.safetensors")
    ]
    for file in (tmp_path / "models").rglob("*.safetensors"):
        real.network().load_state_dict(load_file(file), strict=True)
    text = (tmp_path / "models" / "README.md").read_text()
    assert "`global.safetensors`: BatchNorm layers have no running statistics" in text
    assert "`sites/site-01.safetensors`: BatchNorm" not in text
    assert "Inputs: (B, 1, 16, 16)" in text
    network = readme_network(tmp_path, monkeypatch)
    assert not network.training
    assert network(torch.zeros(2, 1, 16, 16)).shape == (2, 2, 16, 16)


def test_a_predictor_that_is_not_one_network_is_named(tmp_path: Path) -> None:
    on_local(run_plan(tmp_path, FedSM(selector="small"), task=synthetic(), metric="inside/val/dice", rounds=1))
    sites = [f"sites/site-0{n}@personal.safetensors" for n in (1, 2)]
    assert models(tmp_path) == ["README.md", "global.safetensors", *sites]
    text = (tmp_path / "models" / "README.md").read_text()
    assert "The predictor of site-01, site-02 has no file: a RoutedPredictor is not one network." in text


class Failing(FedAvg):
    """Has no predictor after the last evaluation."""

    def predictor(self, site: Site[Any], model: Model) -> Any:
        if (marker := Path(f"{self.optimizer}-{site.name}")).exists():
            raise RuntimeError("no predictor")
        marker.touch()
        return PredictionSet(FedAvg.predictor(self, site, model))


def test_a_failure_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    events = on_local(run_plan(tmp_path / "run", Failing(**SGD), rounds=1))
    assert summary(tmp_path / "run")["status"] == "done"
    notices = " ".join(event.text for event in events if isinstance(event, Notice))
    assert "models/ or pictures/ is not complete: site 'a' failed" in notices


def test_the_code_of_a_network_without_known_arguments() -> None:
    assert network_code(toy.two_sites()) == FROM_CONFIG
    assert network_code(synthetic()).startswith("from monai.networks.nets.unet import UNet\n")
