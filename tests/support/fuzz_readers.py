"""The readers of untrusted files, each with an intact file, for tests/fuzz.py."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import zipfile
from base64 import encodebytes
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from raysim.core.errors import RaysimError
from tests.support.fuzz_runs import (
    RUN_FILES,
    SPLIT,
    TABLES,
    a_network_file,
    a_run,
    read_network_file,
    read_report,
    read_run,
)
from tests.support.fuzz_volumes import VOLUMES

Reader = Callable[[Path, bytes], object]  # of a file with this content, in a new folder


def a_table() -> bytes:
    return b"site,split,image,label,age\na,train,x.png,1,3\nb,test,y.png,0,4.5\nb,val,z.png,1,5\n"


def read_csv(folder: Path, content: bytes) -> object:
    from raysim.data.table import read_table

    (folder / "t.csv").write_bytes(content)
    return read_table(str(folder / "t.csv"), check_files=False)


def a_parquet() -> bytes:
    import pandas as pd

    file = io.BytesIO()
    pd.read_csv(io.BytesIO(a_table())).to_parquet(file)
    return file.getvalue()


def read_parquet(folder: Path, content: bytes) -> object:
    from raysim.data.table import read_table

    (folder / "t.parquet").write_bytes(content)
    return read_table(str(folder / "t.parquet"), check_files=False)


def a_volume() -> bytes:
    import nibabel

    volume = nibabel.Nifti1Image(np.arange(210, dtype=np.int16).reshape(5, 6, 7), np.eye(4))
    volume.header.set_slope_inter(2, 1)
    return bytes(volume.to_bytes())


def read_image(folder: Path, content: bytes, name: str) -> object:
    from raysim.data.image_reader import read_image

    (folder / name).write_bytes(content)
    with suppress(RaysimError):
        read_image(str(folder / name), mask=True)
    return read_image(str(folder / name))


def a_picture(kind: str) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(file, kind)
    return file.getvalue()


def read_yaml(_: Path, content: bytes) -> object:
    from raysim.config.yaml_loader import load_yaml

    return load_yaml(content.decode(errors="replace"), "run.yaml")


def read_checkpoint(folder: Path, content: bytes) -> object:
    """A checkpoint with this state, and with a correct sum."""
    from raysim.core.model import Model
    from raysim.storage import checkpoint

    path = checkpoint.write(folder, 1, Model.of({"w": np.ones(3, np.float32)}), {"a": {"n": 1}})
    text, _, arrays = content.partition(SPLIT)
    index = json.loads((path / "checkpoint.json").read_text())
    for name in ("state", "client_states/a"):
        for file, part in ((f"{name}.json", text), (f"{name}.safetensors", arrays)):
            (path / file).write_bytes(part)
            index["sha256"][file] = hashlib.sha256(part).hexdigest()
    (path / "checkpoint.json").write_text(json.dumps(index))
    try:
        return checkpoint.read(path).client_states["a"]
    except KeyError:
        return None


def a_checkpoint() -> bytes:
    from safetensors.numpy import save

    state = {
        "mapping": [["m", {"model": [["w", True]], "at": "m"}], ["t", {"tuple": [{"array": "t/0", "tensor": True}]}]]
    }
    return json.dumps(state).encode() + SPLIT + save({"m/w": np.ones(3, np.float32), "t/0": np.ones(2)})


def an_archive() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("a", "folder/b"):
            member = tarfile.TarInfo(name)
            member.size = 3
            archive.addfile(member, io.BytesIO(b"abc"))
    return file.getvalue()


def read_archive(folder: Path, content: bytes) -> object:
    from raysim.distributed.artifact_bundle import BEGIN, END, unpack

    return unpack(f"{BEGIN}\n{encodebytes(gzip.compress(content)).decode()}{END}", folder / "out")


def read_zip(folder: Path, content: bytes) -> object:
    from raysim.data.table import read_table

    (folder / "t.zip").write_bytes(content)
    return read_table(f"zip://t.csv::{folder / 't.zip'}", check_files=False)


def a_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("t.csv", a_table())
    return file.getvalue()


def a_deep_picture(kind: str) -> bytes:
    """Three channels of 16 bits, which have other decoders than channels of 8 bits."""
    import imagecodecs
    import tifffile

    pixels, file = np.arange(192, dtype=np.uint16).reshape(8, 8, 3), io.BytesIO()
    if kind == "tif":
        tifffile.imwrite(file, pixels, compression="zlib", photometric="rgb")
        return file.getvalue()
    encode = {"png": imagecodecs.png_encode, "jp2": partial(imagecodecs.jpeg2k_encode, level=0)}[kind]
    return bytes(encode(pixels))


def a_code_stream() -> bytes:
    """JPEG 2000 without a container."""
    from PIL import Image

    file = io.BytesIO()
    pixels = np.arange(3072, dtype=np.uint8).reshape(32, 32, 3)
    Image.fromarray(pixels).save(file, "JPEG2000", no_jp2=True, tile_size=(16, 16), num_resolutions=2)
    return file.getvalue()


def a_data_set() -> bytes:
    cases = [{"image": "./i/a.nii", "label": "./l/a.nii"}]
    return json.dumps({"labels": {"0": "background", "1": "liver"}, "training": cases, "test": ["./i/b.nii"]}).encode()


def read_data_set(folder: Path, content: bytes) -> object:
    from raysim.data.dataset_json import find_class_names, find_decathlon_cases

    (folder / "dataset.json").write_bytes(content)
    find_class_names(folder)
    for name in ("i/a.nii", "i/b.nii", "l/a.nii"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    return find_decathlon_cases(folder, [])


YAML = b"task: {name: toy, data: &d {a: 1e-3}}\nb: [*d, 'x', 2024-01-01]\n<<: *d\nc: !!int 3\n"
PICTURES = {"PNG": "png", "TIFF": "tif", "JPEG": "jpg", "JPEG2000": "jp2", "BMP": "bmp", "GIF": "gif", "WEBP": "png"}
READERS: dict[str, tuple[Callable[[], bytes], Reader]] = {
    "csv": (a_table, read_csv),
    "parquet": (a_parquet, read_parquet),
    "nifti": (a_volume, partial(read_image, name="v.nii")),
    "nifti.gz": (a_volume, lambda folder, content: read_image(folder, gzip.compress(content), "v.nii.gz")),
    **{name: (make, partial(read_image, name=name)) for name, make in VOLUMES.items()},
    **{
        kind.lower(): (partial(a_picture, kind), partial(read_image, name=f"p.{suffix}"))
        for kind, suffix in PICTURES.items()
    },
    **{
        f"deep.{kind}": (partial(a_deep_picture, kind), partial(read_image, name=f"p.{kind}"))
        for kind in ("png", "tif", "jp2")
    },
    "j2k": (a_code_stream, partial(read_image, name="p.j2k")),
    "zip": (a_zip, read_zip),
    "dataset.json": (a_data_set, read_data_set),
    **{
        f"weights.{kind}": (partial(a_network_file, kind), partial(read_network_file, kind=kind))
        for kind in ("safetensors", "zip", "pickle", "legacy")
    },
    **{f"run.{name}": (partial(a_run, [name]), partial(read_run, files=[name])) for name in TABLES[:1]},
    "run": (partial(a_run, RUN_FILES), partial(read_run, files=RUN_FILES)),
    "report": (partial(a_run, RUN_FILES), partial(read_report, files=RUN_FILES)),
    "report.tables": (partial(a_run, TABLES), partial(read_report, files=TABLES)),
    "yaml": (lambda: YAML, read_yaml),
    "checkpoint": (a_checkpoint, read_checkpoint),
    "archive": (an_archive, read_archive),
}
