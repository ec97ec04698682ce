"""Outside sites: batch statistics, Tent and SAR by hand, with a normalisation layer before two logits z and -z."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from algorithms.centralized import Centralized
from algorithms.fedavg import FedAvg
from raysim import ConfigError, LocalFleet, LocalTraining, Model, Site, federate, weights
from raysim.config.merge import merge, parse_pairs
from raysim.config.resolve import resolve, to_mapping
from raysim.core.errors import RunError, SiteError
from raysim.core.seeding import seeded
from raysim.training.test_time_adaptation import (
    OutsideAdaptation,
    affine_parameters,
    mean_entropy,
    norm_layers,
    sar,
    tent,
    use_batch_statistics,
)
from tests.support import toy

SGD: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.1}
IMAGES = np.array([[1.0], [3.0], [3.0]], np.float32)  # mean 7/3, variance 8/9: normalised to -sqrt(2), 1/sqrt(2) twice


class Logits(nn.Sequential):
    """z = scale * normalised x + shift; the logits are z and -z."""

    def __init__(self, norm: Callable[[], nn.Module] = lambda: nn.BatchNorm1d(1)) -> None:
        super().__init__(norm(), nn.Linear(1, 2, bias=False))
        self[1].weight = nn.Parameter(torch.tensor([[1.0], [-1.0]]))


def test_entropy_in_nats() -> None:
    # p = (1/4, 3/4): ln 4 / 4 + 3 ln(4/3) / 4. p = (1/2, 1/2): ln 2.
    logits = torch.tensor([[0, math.log(3)], [5, 5]])
    expected = math.log(4) / 4 + 0.75 * math.log(4 / 3), math.log(2)
    assert mean_entropy(logits[:1]).item() == pytest.approx(expected[0])
    assert mean_entropy(logits).item() == pytest.approx(sum(expected) / 2)
    assert mean_entropy([logits[1:], logits]).item() == pytest.approx(expected[1])  # type: ignore[arg-type]  # a list
    assert mean_entropy(logits.T[None]).item() == pytest.approx(mean_entropy(logits).item())  # (1, K, space)


def test_batch_statistics_are_the_batchs_mean_and_biased_variance() -> None:
    net = Logits().eval()
    x = torch.from_numpy(IMAGES)
    torch.testing.assert_close(net(x)[:, 0], torch.tensor([1.0, 3.0, 3.0]), atol=1e-4, rtol=1e-4)
    use_batch_statistics(net)
    expected = torch.tensor([-math.sqrt(2), 1 / math.sqrt(2), 1 / math.sqrt(2)])
    torch.testing.assert_close(net(x)[:, 0], expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(net(x[:2])[:, 0], torch.tensor([-1.0, 1.0]), atol=1e-4, rtol=0)


def test_batch_statistics_without_running_statistics_and_with_instance_norm() -> None:
    net = nn.Sequential(nn.BatchNorm1d(1), nn.InstanceNorm1d(1, track_running_stats=True), nn.Dropout()).eval()
    net[0].train()  # a method may leave it in training mode to use batch statistics
    x = torch.tensor([[[1.0, 3.0]], [[5.0, 7.0]]])
    use_batch_statistics(net)
    torch.testing.assert_close(net(x), torch.tensor([[[-1.0, 1.0]], [[-1.0, 1.0]]]), atol=1e-4, rtol=0)
    assert not any(layer.training for layer in net.modules())
    assert net[0].num_batches_tracked == 0


def test_a_single_example_without_statistics_is_refused_with_the_cure() -> None:
    net = Logits().eval()
    use_batch_statistics(net)
    with pytest.raises(RunError, match=r"a single example .* task.batch_size .* algorithm.outside=global"):
        net(torch.ones(1, 1))


def test_one_step_of_tent() -> None:
    # With s = sigmoid(2 z), dH/dz = -4 z s (1 - s). A larger |z| is more certain, so the scale increases, and the sum
    # over the three z decides the direction of the shift. Adam's first step is lr for a gradient of any size.
    net = Logits()
    gradient = {z: -4 * z * (s := 1 / (1 + math.exp(-2 * z))) * (1 - s) for z in (-math.sqrt(2), 1 / math.sqrt(2))}
    down = sum(gradient.values()) + gradient[1 / math.sqrt(2)]
    tent(net, IMAGES, lr=0.01, passes=1, batch=8, key=(0,))
    assert net[0].weight.item() == pytest.approx(1.01, abs=1e-5)
    assert net[0].bias.item() == pytest.approx(-math.copysign(0.01, down), abs=1e-5)
    assert net[1].weight.flatten().tolist() == [1, -1]


@pytest.mark.parametrize(
    "norm",
    [
        lambda: nn.BatchNorm2d(4),
        lambda: nn.InstanceNorm2d(4, affine=True),
        lambda: nn.GroupNorm(2, 4),
        lambda: nn.LayerNorm([4, 6, 6]),
    ],
    ids=["batch", "instance", "group", "layer"],
)
def test_entropy_decreases_and_only_scales_and_shifts_change(norm: Callable[[], nn.Module]) -> None:
    with seeded(0):
        net = nn.Sequential(nn.Conv2d(1, 4, 3), norm(), nn.ReLU(), nn.Dropout(), nn.Conv2d(4, 3, 1)).eval()
    before = weights(net)
    images = np.random.default_rng(0).normal(3, 2, (10, 1, 8, 8)).astype(np.float32)

    def uncertain() -> float:
        with torch.no_grad():
            return mean_entropy(net(torch.from_numpy(images))).item()

    use_batch_statistics(net)
    first = uncertain()
    tent(net, images, lr=0.01, passes=3, batch=4, key=(0,))
    assert uncertain() < 0.99 * first
    after = weights(net)
    assert {name for name in after if not np.array_equal(after[name], before[name])} == {"1.weight", "1.bias"}
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_the_same_key_gives_the_same_bits_and_keeps_global_generators() -> None:
    images = np.random.default_rng(0).normal(size=(9, 1)).astype(np.float32)
    images.flags.writeable = False

    nets = [Logits() for _ in range(4)]

    def adapted(key: int) -> Model:
        net = nets.pop()
        tent(net, images, lr=0.1, passes=2, batch=4, key=(key,))
        return weights(net)

    state = torch.get_rng_state()
    assert adapted(1) == adapted(1)
    assert adapted(1) != adapted(2)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_last_batch_of_a_pass_is_not_a_single_image() -> None:
    seen: list[int] = []

    class Watched(Logits):
        def forward(self, inputs: Tensor) -> Tensor:
            seen.append(len(inputs))
            return super().forward(inputs)

    tent(Watched(), np.ones((9, 1), np.float32), lr=0.1, passes=2, batch=4, key=(0,))
    assert seen == [3] * 6


def test_weights_that_are_not_finite_raise_an_error() -> None:
    images = np.array([[1.0], [np.inf]], np.float32)
    with pytest.raises(RunError, match=r"after 1 pass.* weights are not finite; lower .*outside.lr=0.1"):
        tent(Logits(), images, lr=0.1, passes=1, batch=4, key=(0,))


@pytest.mark.parametrize("norm", [nn.Identity, lambda: nn.InstanceNorm1d(1)])
def test_a_network_without_norm_parameters_is_refused_with_the_cure(norm: Any) -> None:
    with pytest.raises(
        RunError, match=r"this network has none.*norm=batch.*affine: true.*algorithm.outside=batch_stats"
    ):
        affine_parameters(Logits(norm))


def test_norm_layers_are_found_by_name() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Sequential(nn.GroupNorm(1, 2), nn.InstanceNorm2d(2)))
    assert list(norm_layers(net)) == ["1.0", "1.1"]


Z = np.array([-math.sqrt(2), 1 / math.sqrt(2), 1 / math.sqrt(2)])  # IMAGES, normalised


def entropies(v: Any) -> Any:
    """The entropy at each of Z for scale and shift v."""
    p = 1 / (1 + np.exp(-2 * (v[0] * Z + v[1])))
    return -p * np.log(p) - (1 - p) * np.log(1 - p)


def slope(v: Any, chosen: Any) -> Any:
    """The derivative of the mean of the chosen entropies with respect to v, by central differences."""
    steps = 1e-5 * np.eye(2)
    return np.array([(entropies(v + s)[chosen].mean() - entropies(v - s)[chosen].mean()) / 2e-5 for s in steps])


def test_two_steps_of_sar() -> None:
    # Entropies at first: 0.215 and twice 0.494. Only the first is below 0.4 ln 2 = 0.277.
    v, momentum, reliable = np.array([1.0, 0.0]), np.zeros(2), np.array([True, False, False])
    for _ in range(2):
        g = slope(v, reliable)
        raised = v + 0.05 * g / np.linalg.norm(g)
        assert ((entropies(v) < 0.4 * math.log(2)) == reliable).all()
        assert ((entropies(raised) < 0.4 * math.log(2)) == reliable).all()
        momentum = 0.9 * momentum + slope(raised, reliable)
        v = v - 0.1 * momentum
    net = Logits()
    sar(net, IMAGES, lr=0.1, passes=2, batch=8, key=(0,))
    assert (net[0].weight.item(), net[0].bias.item()) == pytest.approx(tuple(v), abs=1e-4)
    assert net[1].weight.flatten().tolist() == [1, -1]
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_sar_changes_nothing_without_a_reliable_prediction() -> None:
    net = Logits()
    net[0].weight.data.fill_(0.1)
    before = weights(net).parameters
    sar(net, IMAGES, lr=0.1, passes=2, batch=8, key=(0,))
    assert weights(net).parameters == before


def test_the_predictions_of_sar_are_voxels() -> None:
    with seeded(0):
        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.ReLU(), nn.Conv2d(4, 3, 1)).eval()
    images = np.random.default_rng(0).normal(3, 2, (6, 1, 8, 8)).astype(np.float32)
    logits = net(torch.from_numpy(images)).detach() * 10
    net[3].weight.data *= 10
    net[3].bias.data *= 10
    certain = -(logits.softmax(1) * logits.log_softmax(1)).sum(1) < 0.4 * math.log(3)
    assert 0 < certain.float().mean() < 1
    before = -(logits.softmax(1) * logits.log_softmax(1)).sum(1)[certain].mean()
    sar(net, images, lr=0.01, passes=10, batch=6, key=(0,))
    after = net(torch.from_numpy(images)).detach()
    assert -(after.softmax(1) * after.log_softmax(1)).sum(1)[certain].mean() < before


# The field `outside` takes effect at outside sites only.
BATCH_STATS, TENT = OutsideAdaptation(name="batch_stats"), OutsideAdaptation(name="tent")
POINTS = {"a": ((1, 0), (3, 1)), "x": ((5, 0), (7, 1), (9, 1))}


def task(network: Any = Logits) -> Any:
    return toy.task(POINTS, outside=["x"], network=network)


def place(name: str, network: Any = Logits, **data: Any) -> Site[Any]:
    mine = task(network)
    given = replace(toy.data(POINTS[name]), **data)
    return Site(name, mine, given, None, torch.device("cpu"), 0, 0, 1, mine.start(0))


def predict(site: Site[Any], inputs: Tensor | None = None, **fields: Any) -> Tensor:
    """The predictions of a new network at `site` for its test examples."""
    net = LocalTraining(**fields).predict_module(site, weights(site.load()))
    with torch.no_grad():
        found: Tensor = net(torch.from_numpy(site.data.test.inputs) if inputs is None else inputs)
    return found


def test_batch_statistics_at_an_outside_site() -> None:
    # 5, 7, 9: mean 7, variance 8/3.
    z = math.sqrt(1.5)
    expected = torch.tensor([[-z, z], [0, 0], [z, -z]])
    torch.testing.assert_close(predict(place("x"), outside=BATCH_STATS), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("outside", ["batch_stats", "tent", "sar"])
def test_an_inside_site_gets_the_global_model(outside: Any) -> None:
    assert torch.equal(predict(place("a"), outside=OutsideAdaptation(name=outside)), predict(place("a")))
    assert not torch.equal(predict(place("x"), outside=OutsideAdaptation(name=outside)), predict(place("x")))


def test_labels_are_never_read() -> None:
    test = toy.split(POINTS["x"])
    blind = place("x", test=replace(test, labels=None))
    fields: dict[str, Any] = {"outside": OutsideAdaptation(name="tent", lr=0.1, passes=3)}
    assert torch.equal(predict(blind, **fields), predict(place("x"), **fields))


def test_validation_images_are_used_without_test_images() -> None:
    test, none = toy.split(POINTS["x"]), toy.split(())
    inputs = torch.from_numpy(test.inputs)
    fields: dict[str, Any] = {"inputs": inputs, "outside": OutsideAdaptation(name="tent", lr=0.1)}
    adapted = predict(place("x"), **fields)
    assert torch.equal(predict(place("x", val=test, test=none), **fields), adapted)
    assert torch.equal(predict(place("x", val=toy.split(((1, 0), (2, 0)))), **fields), adapted)
    assert torch.equal(predict(place("x", test=none), **fields), predict(place("x"), inputs, outside=BATCH_STATS))


def scores(algorithm: Any, network: Any = Logits) -> tuple[Any, dict[tuple[str, str], float]]:
    mine = task(network)
    *_, end = federate(algorithm, mine, LocalFleet(mine, rounds=2), rounds=2)
    return end, {(s.site, s.metric): s.value for s in end.scores if s.split == "test"}


@pytest.mark.parametrize("kind", [FedAvg, Centralized])
@pytest.mark.parametrize("outside", ["batch_stats", "tent"])
def test_only_scores_of_outside_sites_change(kind: Any, outside: Any) -> None:
    plain, before = scores(kind(**SGD))
    adapted, after = scores(kind(**SGD, outside=OutsideAdaptation(name=outside)))
    assert adapted.state == plain.state
    assert {key: after[key] for key in after if key != ("x", "distance")} == {
        key: before[key] for key in before if key != ("x", "distance")
    }
    assert after["x", "distance"] != before["x", "distance"] == after["x", "distance@global"]


@pytest.mark.parametrize("name", ["tent", "sar"])
def test_a_network_without_scales_is_refused_before_it_is_trained(name: Any) -> None:
    with pytest.raises(SiteError, match=r"site 'a' failed in round 1: algorithm.outside=tent or sar adapts"):
        scores(FedAvg(**SGD, outside=OutsideAdaptation(name=name)), toy.Line)
    alone = toy.two_sites()  # without outside sites there is nothing to adapt
    assert len(list(federate(FedAvg(**SGD, outside=TENT), alone, LocalFleet(alone, rounds=1), rounds=1))) == 1


def test_the_key_outside_is_checked() -> None:
    tent = resolve(parse_pairs(["algorithm.outside=tent", "algorithm.outside.lr=1e-2"])).algorithm.outside
    assert tent == OutsideAdaptation(name="tent", lr=0.01)
    assert resolve(parse_pairs(["rounds=1"])).algorithm.outside == OutsideAdaptation()
    with pytest.raises(ConfigError, match=r"outside.name='bn': expected 'global', 'batch_stats', 'tent' or 'sar'"):
        resolve(parse_pairs(["algorithm.outside=bn"]))


@pytest.mark.parametrize("pairs", [["outside.lr=0.01"], ["outside=batch_stats", "outside.passes=2"]])
@pytest.mark.parametrize("prefix", ["algorithm", "algorithm.finetune"])
def test_options_of_tent_without_tent_are_refused(prefix: str, pairs: list[str]) -> None:
    algorithm = "algorithm=fcl" if prefix == "algorithm.finetune" else "algorithm=fedavg"
    with pytest.raises(ConfigError, match=rf"{prefix}\.outside={{.*}}: expected name=tent or name=sar with"):
        resolve(parse_pairs([algorithm, *(f"{prefix}.{pair}" for pair in pairs)]))


def test_another_name_removes_the_options_of_tent() -> None:
    given = parse_pairs(["algorithm.outside=tent", "algorithm.outside.lr=0.01"])
    changed = resolve(merge(given, parse_pairs(["algorithm.outside=global"])))
    assert changed.algorithm.outside == OutsideAdaptation()
    assert resolve(to_mapping(resolve(given))).algorithm == resolve(given).algorithm
