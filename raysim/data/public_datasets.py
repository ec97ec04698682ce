"""Recipes for public data sets of several hospitals, cameras or scanners (`raysim data make`).

The owners set the terms of use. Counts are those of their releases.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from raysim.core.errors import ConfigError
from raysim.data.dataset_recipe import Recipe, matching_files
from raysim.data.image_reader import read_image
from raysim.data.memory_limit import check_memory
from raysim.data.nifti_format import check_header

Row = dict[str, Any]


def retina(source: Path, out: Path) -> Iterator[Row]:
    """The cameras whose folders are in `source`. The masks of the sources have 1 or 255 for a vessel; new ones 255."""
    for row in _retina_files(source):
        label = _save_union([row["label"]], out / "masks" / row["site"] / f"{row['image'].stem}.png")
        yield row | {"label": label, "camera": row["site"]}


def _retina_files(source: Path) -> Iterator[Row]:
    for image, match in matching_files(source, r"(Image_\d+)[LR]\.jpg"):
        yield _row("chasedb1", image, image.with_name(f"{image.stem}_1stHO.png"), match[1])
    for image, match in matching_files(source, r"images/(\d+_(?:dr|g|h))\.jpe?g"):
        yield _row("hrf", image, image.parent.parent / "manual1" / f"{image.stem}.tif", match[1])
    for image, match in matching_files(source, r"(?:training|test)/images/(\d+)_(?:training|test)\.tif"):
        label = image.parent.parent / "1st_manual" / f"{match[1]}_manual1.gif"
        if label.exists():  # some copies have no labels of the test images
            yield _row("drive", image, label, match[1])
    for image, match in matching_files(source, r"LES-AV/images/(\w+)\.png"):
        yield _row("lesav", image, image.parent.parent / "vessel-segmentations" / image.name, match[1])


def fundus(source: Path, out: Path) -> Iterator[Row]:
    """Masks with 0 for the background, 1 for the disc around the cup, and 2 for the cup; the source has 255, 128, 0."""
    import numpy as np
    from PIL import Image

    sites = ("drishti", "rim_one_r3", "refuge_train", "refuge_val")
    for image, match in matching_files(source, r"Domain([1-4])/(train|test)/ROIs/image/(\w+)\.(?:png|jpg)"):
        row = _row(sites[int(match[1]) - 1], image, image.parent.parent / "mask" / f"{image.stem}.png", match[3])
        grey = read_image(str(row["label"]), mask=True).array.squeeze()
        row["label"] = out / "labels" / match[1] / f"{image.stem}.png"
        row["label"].parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.where(grey > 200, 0, np.where(grey > 50, 1, 2)).astype("uint8")).save(row["label"])
        yield row | {"split": match[2].lower()}


def nuclei(source: Path, out: Path) -> Iterator[Row]:
    """The union of the masks of an image's nuclei; a site is a kind of image, by its colours and its longer side."""
    kinds = {("fluo", 256), ("fluo", 360), ("fluo", 696), ("purple", 320), ("bright", 1024)}
    for image, match in matching_files(source, r"(\w+)/images/\1\.png"):
        pixels = read_image(str(image), mask=False).array.astype(float)
        kind = (_staining(pixels), max(pixels.shape[1:]))
        paths = sorted((image.parents[1] / "masks").glob("*.png"))
        if kind not in kinds or not paths:
            continue
        label = _save_union(paths, out / "masks" / f"{match[1]}.png")
        yield _row(f"{kind[0]}_{kind[1]}", image, label, match[1])


def _staining(pixels: Any) -> str:
    """`fluo` for an image (C, H, W) with a dark background, otherwise `purple`, or `bright` for one without colour."""
    import numpy as np

    if np.median(pixels) < 100:
        return "fluo"
    return "purple" if np.ptp(pixels, axis=0).mean() > 10 else "bright"


def acdc(source: Path, _: Path) -> Iterator[Row]:
    """Ten sites of ten patients, two of each of the five groups at each site, as in federated contrastive learning."""
    groups, frames = defaultdict[str, list[str]](list), defaultdict[str, list[tuple[Path, str]]](list)
    for image, match in matching_files(source, r"(patient(?:0\d\d|100))/\1_frame(\d+)\.nii(?:\.gz)?"):
        if match[1] not in frames:
            groups[_info(image.parent)["Group"]].append(match[1])
        frames[match[1]].append((image, "ED" if int(match[2]) == int(_info(image.parent)["ED"]) else "ES"))
    for group, patients in groups.items():
        for number, patient in enumerate(sorted(patients)):
            site = f"site{number * 10 // len(patients) + 1:02}"
            for image, frame in frames[patient]:
                label = image.with_name(image.name.replace(".nii", "_gt.nii"))
                yield _row(site, image, label, patient) | {"frame": frame, "disease": group}


def _info(folder: Path) -> dict[str, str]:
    lines = (folder / "Info.cfg").read_text().splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def prostate(source: Path, out: Path) -> Iterator[Row]:
    """The whole gland: at two sites the labels have a value for each zone."""
    for image, match in matching_files(source, r"(BIDMC|BMC|HK|I2CVB|RUNMC|UCL)/(Case\d+)\.nii\.gz"):
        labels = [path for path, _ in matching_files(image.parent, rf"{match[2]}_segmentation\.nii\.gz")]
        if labels:
            label = out / "labels" / match[1] / f"{match[2]}.nii.gz"
            _save_volume(labels[0], label, lambda voxels: (voxels > 0).astype("uint8"))
            yield _row(match[1], image, label, match[2])


def mnms(source: Path, out: Path) -> Iterator[Row]:
    """The volumes of the two annotated frames, cut out of the 4-D files."""
    tables = [path for path, _ in matching_files(source, r"[^/]*opendataset\.csv")]
    if not tables:
        return
    patients = pd.read_csv(tables[0], dtype="string").set_index("External code")
    for file, match in matching_files(source, r"(\w+)_sa\.nii\.gz"):
        labels = file.with_name(f"{match[1]}_sa_gt.nii.gz")
        if match[1] not in patients.index or not labels.exists():
            continue
        patient = patients.loc[match[1]]
        for frame in ("ED", "ES"):
            image, label = (out / kind / f"{match[1]}_{frame}.nii.gz" for kind in ("images", "labels"))
            for path, target in ((file, image), (labels, label)):
                _save_volume(path, target, lambda voxels, number=int(str(patient[frame])): voxels[..., number])
            yield _row(f"centre-{patient['Centre']}", image, label, match[1]) | {
                "frame": frame,
                "vendor": patient["VendorName"],
            }


def ixi(source: Path, _: Path) -> Iterator[Row]:
    for image, match in matching_files(source, r"(IXI\d+-(Guys|HH|IOP)-\d+)_image\.nii\.gz"):
        label = image.parent.parent / "label" / f"{match[1]}_label.nii.gz"
        yield _row(match[2], image, label, match[1].partition("-")[0])


HEART_COLUMNS = (
    *("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg"),
    *("thalach", "exang", "oldpeak", "slope", "ca", "thal", "num"),
)


def heart(source: Path, _: Path) -> Iterator[Row]:
    """The records of four hospitals; the label is 1 for any disease (`num` of 1 to 4)."""
    for file, match in matching_files(source, r"processed\.(cleveland|hungarian|switzerland|va)\.data"):
        records = pd.read_csv(file, header=None, na_values="?")
        if records.shape[1] != len(HEART_COLUMNS):
            raise ConfigError(f"{file} has {records.shape[1]} columns; expected the file of UCI, with 14 and no header")
        records.columns = pd.Index(HEART_COLUMNS)
        records["label"] = (records.pop("num") > 0).astype(int)
        for record in records.to_dict("records"):
            yield {"site": match[1].lower()} | {str(name): value for name, value in record.items()}


def _row(site: str, image: Path, label: Path, patient: str) -> Row:
    if not label.exists():
        raise ConfigError(f"{image} has no label {label}; the download is not complete")
    return {"site": site, "image": image, "label": label, "patient": f"{site}/{patient}"}


def _save_union(masks: Sequence[Path], target: Path) -> Path:
    """Write the union of the foregrounds of `masks` to `target`, with the value 255. Returns `target`."""
    import numpy as np
    from PIL import Image

    target.parent.mkdir(parents=True, exist_ok=True)
    foregrounds = [(read_image(str(path), mask=True).array > 0).any(axis=0) for path in masks]
    Image.fromarray(np.any(foregrounds, axis=0).astype("uint8") * 255).save(target)
    return target


def _save_volume(source: Path, target: Path, change: Any) -> None:
    """Write the voxels of `source`, changed, to `target`, with the same affine."""
    import nibabel
    import numpy as np

    try:
        check_header(str(source))
        volume: Any = nibabel.load(source)
        check_memory(8 * math.prod(volume.shape), source.stat().st_size)  # float64, if the header has a scale
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
    target.parent.mkdir(parents=True, exist_ok=True)
    voxels = change(np.asanyarray(volume.dataobj))
    header = volume.header.copy()
    header.set_data_dtype(voxels.dtype)
    nibabel.save(nibabel.Nifti1Image(voxels, volume.affine, header), target)


HEART = {"background": 0, "right ventricle": 1, "myocardium": 2, "left ventricle": 3}

RECIPES: dict[str, Recipe] = {
    "retina": Recipe(
        title="Vessels in colour fundus photographs of up to four cameras: CHASE_DB1, HRF, DRIVE, LES-AV",
        task="segmentation",
        layout="one or more of: Image_01L.jpg and Image_01L_1stHO.png (CHASE_DB1); images/01_h.jpg and "
        "manual1/01_h.tif (HRF); training/images and training/1st_manual (DRIVE); "
        "LES-AV/images and LES-AV/vessel-segmentations",
        url="https://researchdata.kingston.ac.uk/96/, https://www5.cs.fau.de/research/data/fundus-images/, "
        "https://drive.grand-challenge.org/, https://figshare.com/articles/dataset/LES-AV_dataset/11857698",
        licence="CHASE_DB1 and HRF CC BY 4.0; DRIVE and LES-AV research use; see the owners' pages",
        citation="Fraz et al., IEEE TBME 59(9), 2012 (CHASE_DB1); Budai et al., Int J Biomed Imaging, 2013 (HRF); "
        "Staal et al., IEEE TMI 23(4), 2004 (DRIVE); Orlando et al., MICCAI 2018 (LES-AV)",
        cases=retina,
        classes={"background": 0, "vessel": 255},
        sites={"chasedb1": 28, "hrf": 45, "drive": 40, "lesav": 22},
        checksums={"CHASEDB1.zip": "md5:d9e47c4bac125b29996fae4380a68db1"},
    ),
    "fundus": Recipe(
        title="Optic disc and cup in windows of fundus photographs of four sources, as in DoFE, FedDG and IOP-FL",
        task="segmentation",
        layout="Domain1 to Domain4, each with train/ROIs/image, train/ROIs/mask, test/ROIs/image and test/ROIs/mask",
        url="https://github.com/emma-sjwang/Dofe",
        licence="that of each source (Drishti-GS, RIM-ONE r3, REFUGE): research use with citation",
        citation="Wang et al., DoFE: Domain-oriented Feature Embedding for Generalizable Fundus Image Segmentation on "
        "Unseen Datasets, IEEE TMI 39(12), 2020",
        cases=fundus,
        classes={"background": 0, "disc": 1, "cup": 2},
        sites={"drishti": 101, "rim_one_r3": 159, "refuge_train": 400, "refuge_val": 400},
    ),
    "nuclei": Recipe(
        title="Nuclei in microscopy of the Data Science Bowl 2018; a site is a kind of image",
        task="segmentation",
        layout="stage1_train with ID/images/ID.png and ID/masks/*.png",
        url="https://bbbc.broadinstitute.org/BBBC038",
        licence="CC0 1.0",
        citation="Caicedo et al., Nucleus segmentation across imaging experiments: the 2018 Data Science Bowl, Nature "
        "Methods 16, 2019",
        cases=nuclei,
        classes={"background": 0, "nucleus": 255},
    ),
    "acdc": Recipe(
        title="Heart MRI of 100 patients, end of diastole and of systole, in ten artificial sites",
        task="segmentation",
        layout="patient001 to patient100, each with Info.cfg, patient001_frame01.nii.gz and "
        "patient001_frame01_gt.nii.gz",
        url="https://www.creatis.insa-lyon.fr/Challenge/acdc/databases.html",
        licence="CC BY-NC-SA 4.0",
        citation="Bernard et al., Deep Learning Techniques for Automatic MRI Cardiac Multi-Structures Segmentation and "
        "Diagnosis: Is the Problem Solved?, IEEE TMI 37(11), 2018",
        cases=acdc,
        classes=HEART,
        sites={f"site{number:02}": 20 for number in range(1, 11)},
    ),
    "prostate": Recipe(
        title="The prostate in T2-weighted MRI of six hospitals, as in SAML, FedDG and IOP-FL",
        task="segmentation",
        layout="the folders BIDMC, BMC, HK, I2CVB, RUNMC and UCL, each with Case00.nii.gz and "
        "Case00_segmentation.nii.gz",
        url="https://liuquande.github.io/SAML/",
        licence="that of each source (NCI-ISBI 2013, I2CVB, PROMISE12): research use with citation",
        citation="Liu et al., Shape-aware Meta-learning for Generalizing Prostate MRI Segmentation to Unseen Domains, "
        "MICCAI 2020",
        cases=prostate,
        classes={"background": 0, "prostate": 1},
        sites={"RUNMC": 30, "BMC": 30, "I2CVB": 19, "UCL": 13, "BIDMC": 12, "HK": 12},
    ),
    "mnms": Recipe(
        title="Heart MRI of several centres and four vendors (M&Ms), end of diastole and of systole",
        task="segmentation",
        layout="the table *opendataset.csv, and ID/ID_sa.nii.gz with ID/ID_sa_gt.nii.gz for each labelled patient",
        url="https://www.ub.edu/mnms/",
        licence="research use after registration; see the owners' page",
        citation="Campello et al., Multi-Centre, Multi-Vendor and Multi-Disease Cardiac Segmentation: The M&Ms "
        "Challenge, IEEE TMI 40(12), 2021",
        cases=mnms,
        classes={"background": 0, "left ventricle": 1, "myocardium": 2, "right ventricle": 3},
    ),
    "ixi": Recipe(
        title="The brain in T1-weighted MRI of three London hospitals (IXI Tiny; Fed-IXI of FLamby)",
        task="segmentation",
        layout="ixi_tiny with image/IXI002-Guys-0828_image.nii.gz and label/IXI002-Guys-0828_label.nii.gz",
        url="https://www.dropbox.com/s/ogxjwjxdv5mieah/ixi_tiny.zip?dl=1",
        licence="CC BY-SA 3.0",
        citation="https://brain-development.org/ixi-dataset/; Perez-Garcia et al., TorchIO, Computer Methods and "
        "Programs in Biomedicine 208, 2021; Ogier du Terrail et al., FLamby, NeurIPS 2022",
        cases=ixi,
        classes={"background": 0, "brain": 1},
        checksums={"ixi_tiny.zip": "md5:bfb60f4074283d78622760230bfa1f98"},
    ),
    "heart": Recipe(
        title="Heart disease in the records of four hospitals (UCI)",
        task="tabular",
        layout="processed.cleveland.data, processed.hungarian.data, processed.switzerland.data and processed.va.data",
        url="https://archive.ics.uci.edu/dataset/45/heart+disease",
        licence="CC BY 4.0",
        citation="Detrano et al., International application of a new probability algorithm for the diagnosis of "
        "coronary artery disease, Am J Cardiol 64, 1989",
        cases=heart,
        sites={"cleveland": 303, "hungarian": 294, "switzerland": 123, "va": 200},
        checksums={
            "processed.cleveland.data": "sha256:a74b7efa387bc9d108d7d0115d831fe9b414b29ae7124f331b622b4efa0427c8",
            "processed.hungarian.data": "sha256:d1ad108f785768cd3d7e82dc522e6f5a61eea93cccfb3a46ee8076f73fc3d796",
            "processed.switzerland.data": "sha256:834a405ccf5b66ab4056bb77794adc8df0b7125186454c0a1d002d33c6c3b314",
            "processed.va.data": "sha256:e7c93d8d0d2acdadfa4c5e8de768e2191e7f618b952e29623f1f0d5949ff6b8f",
        },
    ),
}
