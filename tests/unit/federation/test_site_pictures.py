"""The pictures of cases and the summary of the data that a run leaves in pictures/."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from algorithms.localonly import LocalOnly
from raysim.core.contracts import CaseName, Split
from raysim.core.results import CaseScores
from raysim.federation.site_pictures import _picture, _summarize, choose_cases
from raysim.storage.picture_files import LABEL, PREDICTION, SIDE, CasePicture, draw
from raysim.tasks.prediction import CaseImages
from tests.support import toy
from tests.support.plans import make_plan
from tests.support.toy_runs import on_local
from tests.unit.federation.test_model_export import synthetic


def scores(values: list[float], site: str = "a", split: str = "test", metric: str = "distance") -> CaseScores:
    return CaseScores(site, split, "global", np.arange(len(values)) + 10, (metric,), np.array([values]))


@pytest.mark.parametrize(
    ("values", "ranks"),
    [
        ([3.0, 1.0, 2.0, np.nan], {"best": (11, 1.0), "median": (12, 2.0), "worst": (10, 3.0)}),
        ([3.0, 1.0], {"best": (11, 1.0), "worst": (10, 3.0)}),
        ([3.0], {"best": (10, 3.0)}),
    ],
)
def test_the_best_the_median_and_the_worst_case(values: list[float], ranks: dict[str, Any]) -> None:
    chosen = choose_cases(toy.two_sites(), "inside/val/distance", [scores(values), scores([9.0], split="val")])
    assert chosen["a"].split == "test"
    assert list(chosen["a"].ranks.items()) == list(ranks.items())  # lower is better, and the best comes first
    assert not choose_cases(toy.two_sites(), "inside/val/distance", [scores([np.nan]), scores([1.0], metric="loss")])


def split(inputs: Any, labels: Any, spacing: Any = (1.0, 1.0)) -> Split:
    count = len(inputs)
    return Split(inputs, labels, np.zeros(count, int), np.tile(np.array(spacing), (count, 1)))


def test_a_volume_is_shown_at_the_slice_with_the_most_label() -> None:
    labels = np.zeros((1, 1, 4, 6, 5), np.uint8)
    labels[0, 0, 1, 4, 2:4] = 1
    labels[0, 0, 1:3, 4, 3] = 1
    inputs = np.broadcast_to(np.arange(5.0), (1, 1, 4, 6, 5)).copy()
    predicted = np.zeros((1, 4, 6, 5), np.uint8)
    predicted[0, 0, 0, 3] = 1
    picture = _picture(CaseImages(inputs, labels[:, 0], predicted, np.array([1.0, 2.0, 3.0])))
    # The second axis points up, so index 4 of 6 is the second row; the first axis points right.
    assert np.argwhere(picture.label).tolist() == [[1, 1], [1, 2]]
    assert np.argwhere(picture.prediction).tolist() == [[5, 0]]
    assert picture.aspect == 2.0


def test_of_slices_the_one_with_the_most_label_is_shown() -> None:
    labels = np.zeros((3, 1, 4, 4), np.uint8)
    labels[1, 0, :2] = 1
    labels[1, 0, 0, 0] = 255  # ignored
    labels[2, 0, 0, 0] = 1
    inputs = np.arange(3.0)[:, None, None, None] * np.ones((3, 3, 4, 4))
    picture = _picture(CaseImages(inputs, labels[:, 0], np.ones((3, 4, 4), np.uint8), np.array([1.0, 1.0])))
    assert picture.label.sum() == 7
    assert picture.prediction.sum() == 15
    assert picture.image.shape == (4, 4, 3)


def test_outlines() -> None:
    mask = np.zeros((8, 16), np.uint8)
    mask[2:6, 2:6] = 1
    found = np.asarray(draw(CasePicture(np.zeros((8, 16), np.uint8), mask, mask[:, ::-1], 1.0)))
    assert found.shape == (SIDE // 2, SIDE, 3)
    step = SIDE // 16
    assert tuple(found[2 * step, 4 * step]) == LABEL
    assert tuple(found[2 * step, 12 * step]) == PREDICTION
    assert not found[4 * step, 4 * step].any()  # inside the outline
    assert draw(CasePicture(np.zeros((8, 8), np.uint8), mask[:, :8], mask[:, :8], 4.0)).size == (SIDE // 4, SIDE)


def test_the_summary_of_a_split() -> None:
    labels = np.array([[[[0, 1], [1, 255]]], [[[0, 0], [0, 0]]]], np.uint8)
    found = _summarize(split(np.array([1.0, 3.0]).reshape(2, 1, 1, 1) * np.ones((2, 1, 2, 2)), labels), synthetic())
    assert (found.cases, found.examples, found.mean, found.deviation) == (1, 2, 2.0, 1.0)
    assert found.shares == pytest.approx((5 / 7, 2 / 7))


def names(site: str, split: str) -> list[CaseName]:
    return [CaseName(f"{site}/{split}-{number}.png") for number in range(2)]


def content(out: Path) -> Any:
    return json.loads((out / "pictures" / "pictures.json").read_text())


def test_the_pictures_of_a_run(tmp_path: Path) -> None:
    task = replace(synthetic(), case_names=names, class_values={"none": 0, "disc": 1})
    on_local(make_plan(tmp_path, task, LocalOnly(lr=0.02), rounds=2, metric="inside/val/dice"))
    found = content(tmp_path)
    assert [(each["site"], each["rank"]) for each in found["pictures"]] == [
        (site, rank) for site in task.inside for rank in ("best", "worst")
    ]
    for each in found["pictures"]:
        assert max(Image.open(tmp_path / "pictures" / each["file"]).size) == SIDE
        assert each["image"] == f"{each['site']}/test-{each['case']}.png"
    assert found["classes"] == ["none", "disc"]
    assert found["data"]["site-01"]["splits"]["train"]["cases"] == 4


def test_without_pictures_and_with_hashed_names(tmp_path: Path) -> None:
    task = replace(synthetic(), case_names=names)
    on_local(make_plan(tmp_path / "a", task, LocalOnly(lr=0.02), rounds=1, pictures=False, metric="inside/val/dice"))
    assert not content(tmp_path / "a")["pictures"]
    assert [path.name for path in (tmp_path / "a" / "pictures").iterdir()] == ["pictures.json"]
    on_local(
        make_plan(tmp_path / "b", task, LocalOnly(lr=0.02), rounds=1, anonymous_cases=True, metric="inside/val/dice")
    )
    assert all(len(each["image"]) == 16 for each in content(tmp_path / "b")["pictures"])
