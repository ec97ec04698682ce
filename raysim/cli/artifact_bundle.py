"""A run directory as text, for channels that carry text only: `python -m raysim.cli.artifact_bundle DIR` prints it."""

from __future__ import annotations

import base64
import io
import sys
import tarfile
from pathlib import Path

from raysim.core.errors import RunError

BEGIN, END = "--- parcel ---", "--- end of parcel ---"
LEFT_OUT = ("checkpoints", ".process")  # what is large, and what is of there alone
LARGEST = 2 * 2**30  # bytes that a parcel may unfold to


def pack(folder: Path) -> str:
    """All of `folder` but its checkpoints, and those of the trials below it."""

    def kept(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if Path(member.name).name in LEFT_OUT else member

    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, path.name, filter=kept)
    return f"{BEGIN}\n{base64.encodebytes(held.getvalue()).decode()}{END}\n"


def unpack(text: str, folder: Path) -> None:
    """Write what `text` holds into the new `folder`, and nothing outside it. Raises RunError for what is no parcel."""
    inner = text.partition(BEGIN)[2].partition(END)[0]
    if not inner.strip():
        raise RunError("the cluster sent no results back: the run's folder is not there")
    try:
        with tarfile.open(fileobj=io.BytesIO(base64.b64decode(inner)), mode="r:gz") as archive:
            size = 0
            for member in archive:  # before anything is written
                size += member.size
                if size > LARGEST:
                    raise RunError(f"what the cluster sent unfolds to more than {LARGEST} bytes")
            folder.mkdir(parents=True)
            archive.extractall(folder, filter="data")
    except (tarfile.TarError, OSError, ValueError) as error:
        raise RunError(f"what the cluster sent cannot be read: {error}") from error


if __name__ == "__main__":
    print(pack(Path(sys.argv[1])))
