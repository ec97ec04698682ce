"""A run directory as text, for channels that carry text only: `python -m raysim.distributed.artifact_bundle DIR`."""

from __future__ import annotations

import base64
import gzip
import io
import sys
import tarfile
import zlib
from pathlib import Path

from raysim.core.errors import RunError

BEGIN, END = "--- artifacts ---", "--- end of artifacts ---"
EXCLUDED = ("checkpoints", "best", "models", ".process")  # large files; the lock of the process on the cluster
MAX_BYTES = 2 * 2**30  # largest size of an unpacked bundle
MAX_TEXT = MAX_BYTES // 2  # characters of a bundle
MAX_MEMBERS = 100_000  # files and folders
MAX_READ = 2**24  # bytes that are read together; a header that claims more would take that much memory


class _Decompressed(gzip.GzipFile):
    """The decompressed bundle. Raises ReadError for one read of more than MAX_READ bytes."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= MAX_READ:
            raise tarfile.ReadError(f"a header claims {size} bytes; at most {MAX_READ} are expected")
        return super().read(size)


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
    if len(content) > MAX_TEXT:
        raise RunError(f"the results from the cluster have {len(content)} characters; at most {MAX_TEXT} are fetched")
    try:
        compressed = io.BytesIO(base64.b64decode(content))
        with _Decompressed(fileobj=compressed) as tar, tarfile.open(fileobj=tar, mode="r:") as archive:
            _check_members(archive)  # before anything is written
            directory.mkdir(parents=True)
            archive.extractall(directory, filter="data")
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as error:
        raise RunError(f"the results from the cluster cannot be read: {error}") from error


def _check_members(archive: tarfile.TarFile) -> None:
    """Raises RunError for too many or too large files."""
    size = 0
    for number, member in enumerate(archive, 1):
        size += member.size
        if size > MAX_BYTES:
            raise RunError(f"the results from the cluster unpack to more than {MAX_BYTES} bytes")
        if number > MAX_MEMBERS:
            raise RunError(f"the results from the cluster have more than {MAX_MEMBERS} files and folders")


if __name__ == "__main__":
    print(pack(Path(sys.argv[1])))
