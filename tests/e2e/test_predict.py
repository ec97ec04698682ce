"""Predictions of a finished run: files on the grid of the images, what predicts, scores, continuing, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from raysim import ConfigError, Progress
from raysim.cli.main import main
from raysim.core.events import Event
from raysim.distributed.finished_run_commands import predict
from tests.support.trained import Runs, shared_runs, trained


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The folder of a finished run, which tests share."""
    return shared_runs(tmp_path_factory.mktemp)


def dice(predicted: Any, label: Any) -> float:
    return float(2 * (predicted & label).sum() / (predicted.sum() + label.sum()))


def recorded(out: Path, metric: str = "dice") -> Any:
    table = pd.read_parquet(out / "cases.parquet")
    return table[table["metric"] == metric].set_index("image")["value"]


def test_masks_of_pictures_have_their_size_and_the_values_of_the_classes(runs: Runs, tmp_path: Path) -> None:
    folder = runs("pictures")
    predict(folder / "run", str(folder / "table.csv"), tmp_path / "out", probabilities=True)
    listed = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert listed["prediction"].tolist() == [f"{number}.png" for number in range(6)]
    assert set(listed["predictor"]) == {"global"}
    values = recorded(tmp_path / "out")
    for number in range(6):
        mask = np.asarray(Image.open(tmp_path / "out" / f"{number}.png"))
        label = np.asarray(Image.open(folder / f"{number}_m.png"))
        assert mask.shape == label.shape
        assert set(np.unique(mask)) <= {0, 1}
        assert values[f"{number}.png"] == pytest.approx(dice(mask == 1, label == 1), abs=1e-6)
        probabilities = np.load(tmp_path / "out" / f"{number}.npz")["probabilities"]
        assert probabilities.shape == (2, 16, 16)
        assert np.allclose(probabilities.sum(0), 1, atol=1e-5)
        assert np.array_equal(probabilities.argmax(0), mask)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["metrics"]["outside/test/dice"]["mean"] == pytest.approx(values.mean(), abs=1e-9)


@pytest.mark.parametrize("kind", ["volumes", "slices"])
def test_masks_of_volumes_have_the_grid_of_the_image(kind: str, runs: Runs, tmp_path: Path) -> None:
    folder = runs(kind)
    images = tmp_path / "images"
    images.mkdir()
    affine = np.array([[-1.0, 0.1, 0, 5], [0.1, 0.9, 0, -7], [0, 0, -2.0, 3], [0, 0, 0, 1]])
    volume = nibabel.load(folder / "0.nii")
    turned = nibabel.Nifti1Image(np.asarray(volume.dataobj)[::-1, :, ::-1], affine)
    turned.header.set_xyzt_units("mm")
    nibabel.save(turned, images / "x.nii.gz")
    predict(folder / "run", str(images), tmp_path / "out", probabilities=True)
    found = nibabel.load(tmp_path / "out" / "x.nii.gz")
    assert found.shape == (16, 16, 4)
    assert np.allclose(found.affine, turned.affine, atol=1e-6)
    assert found.header.get_zooms() == turned.header.get_zooms()
    assert found.get_data_dtype() == np.uint8
    probabilities = nibabel.load(tmp_path / "out" / "x_probabilities.nii.gz").get_fdata()
    assert probabilities.shape == (16, 16, 4, 2)
    assert np.array_equal(probabilities.argmax(-1), np.asarray(found.dataobj))
    assert not (tmp_path / "out" / "cases.parquet").exists()  # without labels


def test_dice_of_a_volume_is_that_of_the_written_mask(runs: Runs, tmp_path: Path) -> None:
    folder = runs("slices")
    predict(folder / "run", str(folder / "volumes.csv"), tmp_path / "out", site="a")
    values = recorded(tmp_path / "out")
    for number in range(6):
        mask, label = (
            np.asarray(nibabel.load(p).dataobj) == 1
            for p in (tmp_path / "out" / f"{number}.nii", folder / f"{number}_m.nii")
        )
        assert values[f"{number}.nii"] == pytest.approx(dice(mask, label), abs=1e-6)


@pytest.mark.parametrize("kind", ["classes", "rows"])
def test_classes_have_probabilities_and_the_scores_of_the_run(kind: str, runs: Runs, tmp_path: Path) -> None:
    folder = runs(kind)
    whole = pd.read_csv(folder / f"{kind}.csv")
    part = whole[(whole["site"] == "b") & (whole["split"] == "val")].drop(columns=["site", "split"])
    part.to_csv(folder / "new.csv", index=False)
    predict(folder / "run", str(folder / "new.csv"), tmp_path / "out", site="b", round="last")
    listed = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert np.allclose(listed[["probability_sick", "probability_well"]].sum(axis=1), 1)
    logits = pd.read_parquet(tmp_path / "out" / "cases.parquet").set_index("metric")["value"]
    of_run = pd.read_parquet(folder / "run" / "cases.parquet").query("last and site == 'b' and split == 'val'")
    of_run = of_run[~of_run["metric"].str.endswith("@global")].set_index("metric")["value"]
    assert logits["logit_0"] == of_run["logit_0"]
    assert logits["label"] == of_run["label"]
    if kind == "rows":
        assert listed["row"].tolist() == [2]
        whole.head(1).to_csv(folder / "other.csv", index=False)
        assert "is a folder, but the run was trained on rows" in refused(folder / "run", str(folder), tmp_path / "new")
        other = folder / "run", str(folder / "other.csv"), tmp_path / "out"
        assert "has a prediction that differs in images" in refused(*other, site="b", round="last")


def test_the_personal_model_of_a_site(runs: Runs, tmp_path: Path) -> None:
    folder = runs("pictures", "ditto", data={"outside": [], "shift": {"severity": 1.0}})
    for site in ("a", "b"):
        predict(folder / "run", str(folder / "table.csv"), tmp_path / site, site=site, round="last", probabilities=True)
        assert set(pd.read_csv(tmp_path / site / "predictions.csv")["predictor"]) == {"own"}
    first, second = (np.load(tmp_path / site / "0.npz")["probabilities"] for site in ("a", "b"))
    assert not np.array_equal(first, second)


def test_the_images_adapt_the_model_of_an_outside_site(runs: Runs, tmp_path: Path) -> None:
    keys = {
        "algorithm.outside": "tent",
        "task.network": {"name": "unet", "channels": [2, 4], "strides": [2], "norm": "batch"},
    }
    folder = runs("pictures", **keys)
    predict(folder / "run", str(folder / "table.csv"), tmp_path / "out")
    assert set(pd.read_csv(tmp_path / "out" / "predictions.csv")["predictor"]) == {"own"}


def test_the_number_of_parts_does_not_change_the_batches(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = runs("pictures", **{"algorithm.outside": "batch_stats", "task.network.norm": "batch"})
    for parts in (1, 4):  # the bounds of 4 parts of 6 cases, 1, 3 and 4, are within batches of 2
        monkeypatch.setattr("raysim.federation.prediction_job.MAX_PARTS", parts)
        predict(folder / "run", str(folder / "table.csv"), tmp_path / str(parts), probabilities=True)
    for number in range(6):
        one, other = (np.load(tmp_path / parts / f"{number}.npz")["probabilities"] for parts in ("1", "4"))
        assert np.array_equal(one, other)


def test_the_data_of_the_run_are_not_needed(tmp_path: Path) -> None:
    trained(tmp_path, "pictures")
    (tmp_path / "new").mkdir()
    (tmp_path / "0.png").rename(tmp_path / "new" / "x.png")
    for path in (*tmp_path.glob("*.csv"), *tmp_path.glob("*.png"), *tmp_path.glob("*.nii")):
        path.unlink()
    assert predict(tmp_path / "run", str(tmp_path / "new"), tmp_path / "out")["cases"] == 1
    assert (tmp_path / "out" / "x.png").exists()


def test_an_interrupted_prediction_continues_with_the_missing_files(runs: Runs, tmp_path: Path) -> None:
    folder, out = runs("pictures"), tmp_path / "out"
    predict(folder / "run", str(folder / "table.csv"), out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    written = (out / "0.png").stat().st_mtime_ns
    (out / "3.png").unlink()
    (out / "predictions.csv").unlink()
    predict(folder / "run", str(folder / "table.csv"), out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert (out / "0.png").stat().st_mtime_ns == written


def test_interrupted_predictions_keep_their_files(runs: Runs, tmp_path: Path) -> None:
    folder, out = runs("pictures"), tmp_path / "out"

    def interrupt(event: Event) -> None:
        if isinstance(event, Progress) and event.phase == "prediction" and event.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(folder / "run", str(folder / "table.csv"), out, on_event=interrupt)
    assert {path.name for path in out.iterdir()} == {"prediction.json", "0.png", "1.png", "2.png"}
    predict(folder / "run", str(folder / "table.csv"), out)
    assert len(list(out.glob("*.png"))) == 6


def test_the_commands_print_scores_and_folders(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = runs("pictures")
    monkeypatch.setattr("raysim.cli.run.end_cleanly_on_sigterm", lambda: None)
    assert (
        main(["predict", str(folder / "run"), "--images", str(folder / "table.csv"), "--out", str(tmp_path / "o")]) == 0
    )
    printed = capsys.readouterr().out
    assert "6 cases, predictor: global" in printed
    assert f"results: {tmp_path / 'o'}, listed in predictions.csv" in printed.replace("\n", "")
    assert main(["evaluate", str(folder / "run"), "--out", str(tmp_path / "e")]) == 0
    assert f"results: {tmp_path / 'e'}" in capsys.readouterr().out.replace("\n", "")


def refused(*arguments: Any, **keys: Any) -> str:
    with pytest.raises(ConfigError) as error:
        predict(*arguments, **keys)
    return str(error.value)


def test_wrong_inputs_write_nothing(runs: Runs, tmp_path: Path) -> None:
    folder, out = runs("pictures"), tmp_path / "new" / "out"
    run, table = folder / "run", str(folder / "table.csv")
    assert "is not a run directory" in refused(folder, table, out)
    assert "did you mean 'a'" in refused(run, table, out, site="A")
    assert "is a volume, but the run was trained on pictures" in refused(run, str(folder / "volumes.csv"), out)
    assert "has no image" in refused(run, str(folder / "cache"), out)
    wrong = pd.read_csv(table).assign(label="1.png").head(1)
    wrong.to_csv(folder / "wrong.csv", index=False)
    assert "1.png: has the values 61" in refused(run, str(folder / "wrong.csv"), out)
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "colour.png")
    assert "has the shape (3, 12, 20), but the network was trained on (1, 12, 20)" in refused(run, str(tmp_path), out)
    assert not (tmp_path / "new").exists()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "x.txt").write_text("")
    assert "has other files, and nothing is overwritten" in refused(run, table, tmp_path / "used")
    predict(run, table, out)
    assert "has a prediction that differs in site" in refused(run, table, out, site="a")


def test_a_site_without_a_model_and_a_run_that_has_not_ended(runs: Runs, tmp_path: Path) -> None:
    folder, out = runs("pictures", "localonly"), tmp_path / "out"
    table = str(folder / "table.csv")
    assert "LocalOnly has no model for sites outside the run" in refused(folder / "run", table, out)
    assert "LocalOnly has no model for site 'b'" in refused(folder / "run", table, out, site="b")
    assert not out.exists()
    summary = json.loads((folder / "run" / "summary.json").read_text())
    other = tmp_path / "run"
    other.mkdir()
    (other / "config.yaml").write_text((folder / "run" / "config.yaml").read_text())
    assert "the run has not ended; complete it first: raysim resume" in refused(other, table, out)
    (other / "summary.json").write_text(json.dumps({**summary, "status": "failed"}))
    assert "the run has failed" in refused(other, table, out)
    (other / "summary.json").write_text(json.dumps(summary))
    assert "has no checkpoint of the best round in best/" in refused(other, table, out)
