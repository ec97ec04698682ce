"""Networks, losses and transforms by name: found, completed from the data, or refused with the cure."""

from __future__ import annotations

import pickle
from itertools import product

import pytest
import torch
from torch import nn

from raysim.core.errors import ConfigError
from raysim.core.network_outputs import full_resolution
from raysim.tasks.augmentation import make_augmentation
from raysim.tasks.losses import check_loss, make_classification_loss, make_segmentation_loss
from raysim.tasks.networks import check_network, list_networks, network_factory
from tests.support.slow import slow_except


def factory_of(spec, dims=2, channels=1, classes=2, size=(32, 32)):
    return network_factory(spec, spatial_dims=dims, in_channels=channels, out_channels=classes, size=size)


NAMES = ["unet", "UNet", "u_net", "SegResNet", "basic_unet", "dynunet", "AttentionUnet"]


@pytest.mark.parametrize(("name", "dims"), slow_except(product(NAMES, (2, 3)), [("SegResNet", 2), ("u_net", 3)]))
def test_networks_work_by_name_alone_in_2d_and_3d(name, dims):
    size, channels, classes = (32,) * dims, dims - 1, dims
    check_network(factory_of({"name": name}, dims, channels, classes, size), channels, size, classes)


def test_a_factory_can_be_pickled_and_uses_the_arguments():
    factory = pickle.loads(pickle.dumps(factory_of({"name": "unet", "channels": [4, 8, 16], "num_res_units": 0})))
    # 3 levels: the first convolution has 1 input channel, 4 output channels, 3x3 kernels and a bias
    assert sum(p.numel() for p in factory().model[0].conv.parameters()) == 4 * 9 + 4
    assert factory().strides == (2, 2)


def test_networks_of_the_user_are_found_by_module():
    net = factory_of({"name": "torch.nn:Conv2d", "kernel_size": 1})()
    assert (net.in_channels, net.out_channels) == (1, 2)


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ({"name": "unett"}, ["'unett'", "did you mean 'UNet'", "SegResNet"]),
        ({"name": "unet", "chanels": [4, 8]}, ["'chanels'", "did you mean 'channels'", "num_res_units"]),
        ({"channels": [4, 8]}, ["no name"]),
        ({"name": "torch.nn:Nothing"}, ["cannot be imported"]),
        ({"name": "own.py:Net"}, ["cannot be imported: FileNotFoundError"]),
        ({"name": "ViT"}, ["needs patch_size"]),
        ({"name": "os:path"}, ["has the type module", "expected a class or a function"]),
        ({"name": "unet", "channels": 4}, ["task.network.channels=4: expected a number for each level, as in [16,"]),
        ({"name": "unet", "channels": "abc"}, ["task.network.channels='abc'"]),
        ({"name": "dynunet", "strides": 2}, ["task.network.strides=2: expected a number for each level, as in [1, 2"]),
    ],
)
def test_a_wrong_spec_is_refused_with_the_cure(spec, parts):
    with pytest.raises(ConfigError) as error:
        factory_of(spec)
    assert all(part in str(error.value) for part in parts)


def test_the_error_of_monai_is_the_reason_why_a_network_cannot_be_created():
    with pytest.raises(ConfigError, match=r"cannot be created: .*length of `channels`"):
        check_network(factory_of({"name": "unet", "channels": [4]}), 1, (32, 32), 2)


def test_an_image_that_does_not_fit_the_levels_is_refused_with_its_size():
    with pytest.raises(ConfigError, match=r"\(30, 30\).*fewer levels"):
        check_network(factory_of({"name": "unet", "channels": [4, 8, 16, 32, 64]}, size=(30, 30)), 1, (30, 30), 2)


@pytest.mark.parametrize("argument", [{"in_channels": 3}, {"out_channels": 3}, {"spatial_dims": 3}])
def test_an_argument_that_contradicts_the_data_must_be_removed(argument):
    (key,) = argument
    with pytest.raises(ConfigError, match=rf"; remove {key} from task.network, because raysim sets it$"):
        check_network(factory_of({"name": "unet", **argument}), 1, (32, 32), 2)
    with pytest.raises(
        ConfigError, match=rf"cannot be created: .*; remove {key} from task.network, because raysim sets it$"
    ):
        check_network(factory_of({"name": "unet", key: "x"}), 1, (32, 32), 2)


def test_an_argument_that_agrees_with_the_data_is_not_in_the_advice():
    spec = {"name": "unet", "in_channels": 1, "channels": [4, 8, 16, 32, 64]}
    with pytest.raises(ConfigError, match="fewer levels"):
        check_network(factory_of(spec, size=(30, 30)), 1, (30, 30), 2)


@pytest.mark.parametrize("name", ["densenet121", "resnet18"])
def test_a_classifier_is_not_a_segmentation_network(name):
    message = r"the shape \(2, 2\), not \(2, 2, 32, 32\), .*; it is not a segmentation network"
    with pytest.raises(ConfigError, match=message):
        check_network(factory_of({"name": name}), 1, (32, 32), 2)


def test_a_wrong_number_of_classes_is_refused():
    with pytest.raises(ConfigError, match=r"\(2, 2, 32, 32\), not \(2, 3, 32, 32\)"):
        check_network(factory_of({"name": "unet"}), 1, (32, 32), 3)


class WithState(nn.Conv2d):
    def get_extra_state(self):
        return {"steps": 3}

    def set_extra_state(self, state): ...


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            lambda: nn.Conv2d(1, 2, 1).to(torch.bfloat16),
            "'weight' is bfloat16: expected float32, .* algorithm.amp=true",
        ),
        (lambda: nn.Conv2d(1, 2, 1).to(torch.complex64), "'weight' is complex64: expected float32"),
        (lambda: nn.LazyConv2d(2, 1), "'weight' has no shape before the first batch"),
        (lambda: WithState(1, 2, 1), "'_extra_state' is a dict .get_extra_state.: expected tensors only"),
        (lambda: nn.Conv2d(1, 2, 1, device="meta"), "'weight' has no values"),
    ],
)
def test_a_network_that_a_model_cannot_hold_is_refused(network, message):
    with pytest.raises(ConfigError, match=f"cannot be sent between server and sites: {message}"):
        check_network(network, 1, (8, 8), 2)


def test_a_check_does_not_change_the_global_generator():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    check_network(factory_of({"name": "unet"}), 1, (32, 32), 2)
    assert torch.equal(torch.rand(1), expected)


def test_the_list_describes_each_network():
    assert list_networks()["SegResNet"].startswith("SegResNet based on")
    assert list_networks()["logistic"].startswith("Logistic regression")
    assert {"Classifier", "DenseNet121", "ResNet", "SEResNet50", "EfficientNetBN", "mlp"} <= set(list_networks())


def test_the_dice_loss_is_zero_for_a_correct_and_one_for_a_wrong_prediction():
    labels = torch.tensor([[[[0, 1], [1, 0]]]])
    right = torch.cat([1 - labels, labels], 1) * 100.0
    assert float(make_segmentation_loss({"name": "dice"})(right, labels)) == pytest.approx(0, abs=1e-4)
    assert float(make_segmentation_loss({"name": "dice"})(-right, labels)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", ["dice_ce", "DiceCELoss", "focal", "tversky", "generalized_dice", "dicefocal"])
def test_losses_work_by_name_alone(name):
    check_loss(pickle.loads(pickle.dumps(make_segmentation_loss({"name": name}))), 3, (8, 8))


def test_the_users_arguments_take_precedence():
    assert make_segmentation_loss({"name": "dice", "softmax": False, "sigmoid": True}).measure.sigmoid
    check_loss(make_segmentation_loss({"name": "dice_ce", "weight": [1, 5]}), 2, (8, 8))


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ({"name": "dise"}, "did you mean 'Dice'"),
        ({"name": "dice", "smoth": 1}, "unknown argument"),
        ({"name": "dice", "sigmoid": True}, "does not accept"),
        ({"name": "mse"}, "valid: Boundary"),
        ({"name": "dice_ce", "weight": "abc"}, r"task\.loss\.weight='abc': expected a number for each class"),
        ({"name": "dice_ce", "weight": {"a": 1}}, r"task\.loss\.weight=.*: expected a number for each class"),
        ({"name": "dice_ce", "weight": [[1, 2], 3]}, r"task\.loss\.weight=.*: expected a number for each class"),
    ],
)
def test_a_wrong_loss_is_refused(spec, part):
    with pytest.raises(ConfigError, match=part):
        make_segmentation_loss(spec)


def test_a_loss_needs_a_weight_for_every_class():
    with pytest.raises(ConfigError, match="fails on 3 classes"):
        check_loss(make_segmentation_loss({"name": "dice_ce", "weight": [1, 5]}), 3, (8, 8))


def test_a_loss_is_a_single_number():
    with pytest.raises(ConfigError, match=r"shape \(2, 2, 1, 1\): expected a single number; remove reduction"):
        check_loss(make_segmentation_loss({"name": "dice", "reduction": "none"}), 2, (8, 8))


def test_a_loss_without_a_gradient_is_refused():
    with pytest.raises(
        ConfigError, match=r"the loss of a batch has no gradient; compute it from the logits with torch"
    ):
        check_loss(lambda logits, labels: (logits.argmax(1) != labels[:, 0]).float().mean(), 2, (8, 8))
    parameter = nn.Parameter(torch.ones(()))
    with pytest.raises(ConfigError, match="the loss of a batch has no gradient"):
        check_loss(lambda logits, labels: parameter * 2, 2, (8, 8))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda logits: logits.sum().item(), "is a float: expected a tensor; return it without float"),
        (lambda logits: None, "is a NoneType: expected a tensor"),
        (lambda logits: logits.sum() * float("nan"), "is nan for logits from -1 to 1: expected a finite number"),
        (lambda logits: logits.mean(0), r"has the shape \(2, 8, 8\): expected a single number; .* or return the mean"),
    ],
)
def test_a_wrong_loss_value_is_refused(value, message):
    with pytest.raises(ConfigError, match=rf"the loss of a batch {message}"):
        check_loss(lambda logits, labels: value(logits), 2, (8, 8))


def test_the_example_of_a_loss_has_every_class():
    check_loss(make_classification_loss({"name": "cross_entropy", "weight": [0, 0, 0, 1]}), 4, ())
    check_loss(make_segmentation_loss({"name": "dice_ce", "weight": [0, 0, 1]}), 3, (8, 8))


LOSSES = """
from torch import nn

def power(logits, labels, exponent=2.0, *, scale=1.0):
    return scale * (logits[:, 1:] - labels).abs().pow(exponent).mean()

def needs_more(logits, labels, margin):
    return margin * logits.mean()

def factory():
    return nn.L1Loss()

class Callable:
    def __call__(self, logits, labels):
        return (logits[:, 1:] - labels).square().mean()
"""


@pytest.fixture
def own_losses(tmp_path, monkeypatch):
    (tmp_path / "own_losses.py").write_text(LOSSES)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize("make", [make_segmentation_loss, make_classification_loss])
def test_a_function_is_a_loss(own_losses, make):
    logits, labels = torch.tensor([[0.0, 3.0], [0.0, 1.0]]), torch.tensor([[1], [0]], dtype=torch.uint8)
    assert make({"name": "own_losses:power"})(logits, labels) == (4 + 1) / 2
    cubed = make({"name": "own_losses:power", "exponent": 3, "scale": 2})
    assert pickle.loads(pickle.dumps(cubed))(logits, labels) == 2 * (8 + 1) / 2
    assert cubed([logits, logits], labels) == 9  # deep supervision: the first is the full resolution
    check_loss(cubed, 2, ())
    assert make({"name": "own_losses:Callable"})(logits, labels) == 2.5


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "own_losses:power", "exponnt": 3}, "unknown argument of loss power: 'exponnt'.*'exponent'"),
        ({"name": "own_losses:power", "logits": 3}, "unknown argument of loss power: 'logits'.*valid: exponent, scale"),
        ({"name": "own_losses:needs_more"}, "loss needs_more needs margin; add it next to 'name'"),
        ({"name": "own_losses:factory"}, r"the loss fails on 2 classes: TypeError: factory\(\) takes 0 positional"),
    ],
)
def test_a_wrong_function_is_refused(own_losses, spec, message):
    with pytest.raises(ConfigError, match=message):
        check_loss(make_segmentation_loss(spec), 2, (8, 8))


def test_full_resolution_is_the_first_output_of_a_list_or_a_stack():
    full, half = torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 4, 4)
    assert full_resolution([full, half], 4) is full
    stack = torch.stack([full, full + 1], 1)
    assert torch.equal(full_resolution(stack, 4), full)


def test_deep_supervision_trains():
    net = factory_of({"name": "dynunet", "deep_supervision": True, "filters": [4, 8, 8, 8]}, size=(64, 64))()
    value = make_segmentation_loss({"name": "dice_ce"})(net(torch.zeros(1, 1, 64, 64)), torch.zeros(1, 1, 64, 64))
    value.backward()
    assert value.isfinite()


@pytest.mark.parametrize("prob", [5, -0.1, float("inf"), float("nan"), "often", True, None])
def test_prob_of_a_transform_is_a_probability(prob):
    with pytest.raises(ConfigError, match=r"task.augment: prob=.*: expected a probability, 0 to 1"):
        make_augmentation([{"name": "rand_flip", "prob": prob}], 1, (8, 8))
    assert make_augmentation([{"name": "rand_flip", "prob": 1}], 1, (8, 8)) is not None


def test_your_own_network_with_the_name_of_a_shipped_one_gets_no_defaults_of_it(tmp_path, monkeypatch):
    (tmp_path / "own_unet.py").write_text("from torch import nn\nclass UNet(nn.Conv2d): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    made = factory_of({"name": "own_unet:UNet", "kernel_size": 1})()
    assert (made.in_channels, made.out_channels) == (1, 2)
