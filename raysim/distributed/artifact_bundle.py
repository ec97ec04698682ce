"""A run directory as text, for channels that carry text only: `python -m raysim.distributed.artifact_bundle DIR`."""

from __future__ import annotations

import base64
import io
import sys
import tarfile
from pathlib import Path

from raysim.core.errors import RunError

BEGIN, END = "--- artifacts ---", "--- end of artifacts ---"
EXCLUDED = ("checkpoints", "best", "models", ".process")  # large files; the lock of the process on the cluster
MAX_BYTES = 2 * 2**30  # largest size of an unpacked bundle


def pack(directory: Path) -> str:
    """The bundle of all files in `directory`, without checkpoints and models of the run or of trials."""

    def select(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if Path(member.name).name in EXCLUDED else member

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path in sorted(directory.iterdir()):
            archive.add(path, path.name, filter=select)
    return f"{BEGIN}\n{base64.encodebytes(buffer.getvalue()).decode()}{END}\n"


def unpack(text: str, directory: Path) -> None:
    """Write the files of a bundle in `text` into the new `directory`, and nothing outside it.

    Raises RunError if the text contains no valid bundle.
    """
    content = text.partition(BEGIN)[2].partition(END)[0]
    if not content.strip():
        raise RunError("the cluster returned no results: the run directory does not exist there")
    try:
        with tarfile.open(fileobj=io.BytesIO(base64.b64decode(content)), mode="r:gz") as archive:
            size = 0
            for member in archive:  # before anything is written
                size += member.size
                if size > MAX_BYTES:
                    raise RunError(f"the results from the cluster unpack to more than {MAX_BYTES} bytes")
            directory.mkdir(parents=True)
            archive.extractall(directory, filter="data")
    except (tarfile.TarError, OSError, ValueError) as error:
        raise RunError(f"the results from the cluster cannot be read: {error}") from error


if __name__ == "__main__":
    print(pack(Path(sys.argv[1])))
