"""Overlap, volumes and surface distances, by hand and by their definitions."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from monai.metrics.meandice import compute_dice
from scipy import ndimage

from raysim.core.contracts import Split
from raysim.core.errors import ConfigError
from raysim.tasks.segmentation_metrics import METRICS, SegmentationScore

CPU = torch.device("cpu")


def split(labels, cases=None, spacing=None):
    """Examples with these labels (class indices) and inputs that are 0."""
    labels = np.array(labels, np.uint8)[:, None]
    number, dims = len(labels), labels.ndim - 2
    spacing = np.ones((number, dims)) if spacing is None else np.array(spacing, float)
    inputs = np.zeros(labels.shape, np.float32)
    return Split(inputs, labels, np.arange(number) if cases is None else np.array(cases), spacing)


def predictor(predictions, classes):
    """A predictor that returns these class indices, example by example, for batches of any size."""
    left = [torch.nn.functional.one_hot(torch.tensor(p), classes).movedim(-1, 0).float() for p in predictions]
    return lambda inputs: torch.stack([left.pop(0) for _ in range(len(inputs))])


def test_dice_is_twice_the_overlap_over_the_sum():
    # All 2 labelled pixels and 1 other pixel are predicted: 2 * 2 / (3 + 2)
    score = SegmentationScore(("background", "vessel"))
    result = score(predictor([[[1, 1], [1, 0]]], 2), split([[[1, 1], [0, 0]]]), CPU)
    assert result == {"dice": pytest.approx(0.8)}


def test_dice_has_the_bits_of_monai():
    rng = np.random.default_rng(0)
    for _ in range(20):
        predicted, label = (rng.random((5, 6)) < rng.random() for _ in range(2))
        label[0, 0] = True
        expected = compute_dice(*(torch.from_numpy(mask)[None, None].float() for mask in (predicted, label)))
        assert METRICS["dice"].function(predicted, label, (1.0, 1.0)) == float(expected)


def test_the_first_of_several_largest_logits_is_predicted():
    # Pixel 1: background and class a are equal. Pixel 2: classes a and b are equal.
    logits = torch.tensor([[[1.0, 0.0], [1.0, 2.0], [0.0, 2.0]]])[:, :, None]
    result = SegmentationScore(("background", "a", "b"))(lambda inputs: logits, split([[[1, 1]]]), CPU)
    assert result == {"dice": pytest.approx(2 / 3), "dice_a": pytest.approx(2 / 3)}


def test_a_predictor_may_use_gradients():
    shift = torch.zeros(2, 1, 1, requires_grad=True)

    def adapted(inputs):
        with torch.enable_grad():
            (logits(inputs) * inputs).sum().backward()
        return logits(inputs)

    def logits(inputs):
        return torch.cat([-inputs, inputs], 1) + shift

    result = SegmentationScore(("background", "vessel"))(adapted, split([[[1, 1], [0, 0]]]), CPU)
    assert 0 <= result["dice"] <= 1
    assert shift.grad is not None


def test_one_distant_pixel_of_41_does_not_change_the_95th_percentile():
    label = np.zeros((12, 40), np.uint8)
    label[0] = 1
    predicted = label.copy()
    predicted[10, 20] = 1
    # 40 of the 41 distances to the label are 0 and one is 10; all 40 distances from the label are 0.
    result = SegmentationScore(("background", "a"), metrics=("hd95",))(
        predictor([predicted.tolist()], 2), split([label]), CPU
    )
    assert result == {"hd95": 0.0}


def test_a_class_that_is_not_in_the_label_is_not_evaluated():
    labels = [[[1, 1], [0, 0]], [[1, 2], [2, 0]]]
    predictions = [[[1, 0], [2, 2]], [[1, 2], [0, 0]]]
    # Case 1: class a has Dice 2/3 and b is not in the label. Case 2: a has Dice 1 and b has 2/3.
    result = SegmentationScore(("background", "a", "b"))(predictor(predictions, 3), split(labels), CPU)
    assert result == pytest.approx({"dice": (2 / 3 + 5 / 6) / 2, "dice_a": (2 / 3 + 1) / 2, "dice_b": 2 / 3})


def test_slices_of_a_volume_are_evaluated_together():
    labels = [[[1, 1], [1, 1]], [[1, 0], [0, 0]]]
    predictions = [[[1, 1], [1, 1]], [[0, 0], [0, 0]]]
    volume = split(labels, cases=[0, 0], spacing=[[1, 1, 5]] * 2)
    # 2 * 4 / (4 + 5), not the mean of 1 and 0
    result = SegmentationScore(("background", "cord"))(predictor(predictions, 2), volume, CPU)
    assert result == {"dice": pytest.approx(8 / 9)}


def test_distances_are_in_mm_along_each_axis():
    label, found = np.zeros((5, 5), int), np.zeros((5, 5), int)
    label[1, 1], found[3, 1] = 1, 1
    score = SegmentationScore(("background", "spot"), ("hd95", "asd"))
    result = score(predictor([found], 2), split([label], spacing=[[3.0, 1.0]]), CPU)
    assert result == pytest.approx({"hd95": 6.0, "asd": 6.0})  # two rows of 3 mm


def test_the_distance_of_slices_is_their_spacing():
    empty, spot = [[0, 0], [0, 0]], [[1, 0], [0, 0]]
    volume = split([spot, empty, empty], cases=[4, 4, 4], spacing=[[1, 1, 2.5]] * 3)
    score = SegmentationScore(("background", "spot"), ("hd95",))
    assert score(predictor([empty, empty, spot], 2), volume, CPU) == pytest.approx({"hd95": 5.0})


def test_without_a_prediction_the_distance_is_the_diagonal_of_the_image():
    label = np.zeros((3, 4), int)
    label[1, 1] = 1
    score = SegmentationScore(("background", "spot"), ("dice", "hd95", "asd"))
    result = score(predictor([label * 0], 2), split([label], spacing=[[2.0, 2.0]]), CPU)
    assert result == pytest.approx({"dice": 0.0, "hd95": 10.0, "asd": 10.0})  # 6 by 8 mm


def test_metrics_that_cannot_be_computed_are_left_out():
    score = SegmentationScore(("background", "spot"), ("dice", "hd95"))
    nothing = np.zeros((2, 2), int)
    assert score(predictor([nothing], 2), split([nothing]), CPU) == {}
    assert score(predictor([], 2), split(np.zeros((0, 2, 2))), CPU) == {}
    unlabelled = Split(np.zeros((1, 1, 2, 2), np.float32), None, np.arange(1), np.ones((1, 2)))
    assert score(predictor([nothing], 2), unlabelled, CPU) == {}


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_batches_do_not_matter(batch_size):
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 3, (2, 5, 8, 8))
    whole = SegmentationScore(("background", "a", "b"), batch_size=5)(predictor(predictions, 3), split(labels), CPU)
    score = SegmentationScore(("background", "a", "b"), batch_size=batch_size)
    assert score(predictor(predictions, 3), split(labels), CPU) == whole


def test_better_has_every_metric_with_the_main_one_first():
    score = SegmentationScore(("background", "a", "b"), ("dice", "hd95"))
    assert list(score.better) == ["dice", "dice_a", "dice_b", "hd95", "hd95_a", "hd95_b"]
    assert score.better["dice_a"] == "higher"
    assert score.better["hd95"] == "lower"


def test_a_duplicate_metric_is_refused():
    with pytest.raises(ConfigError, match=r"task.metrics=\[dice, dice\]: expected each metric once"):
        SegmentationScore(("background", "a"), ("dice", "dice"))


def random_masks(shape):
    """A prediction and a label that overlap in part, with irregular surfaces."""
    rng = np.random.default_rng(3)
    label = ndimage.gaussian_filter(rng.normal(size=shape), 2) > 0.02
    return ndimage.gaussian_filter(label + rng.normal(0, 0.8, shape), 1) > 0.5, label


def surface(mask):
    return mask & ~ndimage.binary_erosion(mask)


def distances(one, other, spacing):
    """The distance in mm from each surface voxel of `one` to the nearest of `other`, by comparing all pairs."""
    a, b = (np.argwhere(surface(mask)) * np.array(spacing) for mask in (one, other))
    return np.sqrt(np.square(a[:, None] - b[None]).sum(-1).min(1))


@pytest.mark.parametrize("shape", [(30, 40), (14, 16, 12)])
def test_every_metric_equals_its_definition(shape):
    predicted, label = random_masks(shape)
    spacing, tolerance = (0.5, 1.5, 0.8)[: len(shape)], 0.45
    both = np.concatenate([distances(predicted, label, spacing), distances(label, predicted, spacing)])
    tp, fp, fn = (predicted & label).sum(), (predicted & ~label).sum(), (~predicted & label).sum()
    ends = [np.percentile(distances(*pair, spacing), 95) for pair in ((predicted, label), (label, predicted))]
    expected = {
        "dice": 2 * tp / (2 * tp + fp + fn),
        "iou": tp / (tp + fp + fn),
        "sensitivity": tp / (tp + fn),
        "precision": tp / (tp + fp),
        "surface_dice": (both <= tolerance).mean(),
        "hd95": max(ends),
        "asd": both.mean(),
        "volume_error": abs(fp - fn) / (tp + fn),
    }
    score = SegmentationScore(("background", "a"), tuple(METRICS), dims=len(shape), surface_tolerance_mm=tolerance)
    result = score(predictor([predicted.astype(int)], 2), split([label], spacing=[spacing]), CPU)
    assert 0.1 < expected["surface_dice"] < 0.9
    assert result == pytest.approx(expected, abs=1e-6)


def test_the_overlap_of_three_labelled_and_two_predicted_pixels():
    # TP 1, FP 1, FN 2: 1/4, 1/3, 1/2, |2 - 3| / 3
    names = ("iou", "sensitivity", "precision", "volume_error")
    score = SegmentationScore(("background", "a"), names)
    result = score(predictor([[[1, 0], [0, 1], [0, 0]]], 2), split([[[1, 1], [1, 0], [0, 0]]]), CPU)
    assert result == pytest.approx({"iou": 1 / 4, "sensitivity": 1 / 3, "precision": 1 / 2, "volume_error": 1 / 3})


def test_without_a_prediction_overlaps_are_zero_and_the_volume_error_is_one():
    label = np.zeros((4, 4), int)
    label[1, 1] = 1
    names = ("iou", "sensitivity", "precision", "surface_dice", "volume_error")
    result = SegmentationScore(("background", "a"), names)(predictor([label * 0], 2), split([label]), CPU)
    assert result == {"iou": 0, "sensitivity": 0, "precision": 0, "surface_dice": 0, "volume_error": 1}


@pytest.mark.parametrize(("tolerance", "expected"), [(2.9, 0.0), (3.0, 1.0)])
def test_the_tolerance_of_surface_dice_is_in_mm(tolerance, expected):
    label, found = np.zeros((5, 5), int), np.zeros((5, 5), int)
    label[1, 1], found[2, 1] = 1, 1
    score = SegmentationScore(("background", "spot"), ("surface_dice",), surface_tolerance_mm=tolerance)
    assert score(predictor([found], 2), split([label], spacing=[[3.0, 1.0]]), CPU) == {"surface_dice": expected}


def test_a_scorer_with_every_metric_can_be_sent():
    score = SegmentationScore(("background", "a"), tuple(METRICS), surface_tolerance_mm=2.0)
    assert pickle.loads(pickle.dumps(score)).better == score.better
