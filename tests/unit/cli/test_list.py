"""`raysim list`: what can be listed, the names of each kind, and one entry."""

from __future__ import annotations

from pathlib import Path

import pytest

from raysim.cli.main import main
from raysim.cli.parser import KINDS
from raysim.core.registry import algorithm_groups


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["list", *arguments]) == 0
    return capsys.readouterr().out


def row(text: str, name: str) -> str:
    """The line that starts with `name`, with single spaces."""
    return next(" ".join(line.split()) for line in text.splitlines() if line.split()[:1] == [name])


def test_without_a_kind_the_kinds_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys)
    assert [row(text, kind).split()[0] for kind in KINDS] == list(KINDS)
    assert "raysim list KIND NAME" in text


def test_metrics_have_a_direction_and_a_range(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "metrics")
    assert row(text, "iou").startswith("iou higher 0 to 1 Intersection over union")
    assert row(text, "volume_error").startswith("volume_error lower at least 0 |V - L| / L")
    assert row(text, "brier").startswith("brier lower 0 to 2 Brier score")
    assert text.index("segmentation, synthetic") < text.index("dice") < text.index("classification, tabular")
    assert "module:Name" in text


def test_losses_are_listed_by_task(capsys: pytest.CaptureFixture[str]) -> None:
    segmentation, classification = shown(capsys, "losses").split("classification, tabular")
    assert row(segmentation, "DiceLoss") == "DiceLoss Compute average Dice loss between two tensors."
    assert "CrossEntropyLoss" not in segmentation
    assert row(classification, "CrossEntropyLoss").startswith("CrossEntropyLoss The cross-entropy of torch")


def test_transforms_are_described_by_their_array_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert row(shown(capsys, "transforms"), "RandFlipd") == "RandFlipd Randomly flips the image along axes."


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("metrics", "Surface_Dice"), ("1809.04430", "better higher", "range 0 to 1")),
        (("metrics", "own:missed"), ("Missed voxels.", "better lower", "range at least 0")),
        (("losses", "tversky"), ("Tversky loss", "task.loss.", "alpha 0.5", "softmax")),
        (("losses", "own:power"), ("A power.", "task.loss.", "exponent 2")),
        (("transforms", "rand_flip"), ("task.augment", "prob 0.1")),
        (("networks", "unet"), ("UNet", "task.network.", "num_res_units 0")),
    ],
)
def test_one_entry(
    arguments: tuple[str, ...],
    parts: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = (
        "def missed(predicted, label, spacing):",
        "    'Missed voxels.'",
        "missed.better, missed.range = 'lower', (0, float('inf'))",
        "def power(logits, labels, exponent=2):",
        "    'A power.'",
    )
    (tmp_path / "own.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    text = " ".join(shown(capsys, *arguments).split())
    assert [part for part in parts if part not in text] == []


@pytest.mark.parametrize("kind", ["metrics", "losses", "transforms"])
def test_an_unknown_name_is_refused(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", kind, "nothing_like_it"]) == 2
    assert (
        f"unknown {kind.removesuffix('es' if kind == 'losses' else 's')} 'nothing_like_it'" in capsys.readouterr().err
    )


def test_algorithms_are_listed_by_group(capsys: pytest.CaptureFixture[str]) -> None:
    first = [line.split("  ")[0] for line in shown(capsys, "algorithms").splitlines() if line[:1].strip()]
    expected = [name for group, names in algorithm_groups().items() for name in (group, *names)]
    assert first[: len(expected)] == expected
