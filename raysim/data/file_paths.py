"""Paths of files, local or URLs that fsspec supports: absolute paths, joining, and checks for missing files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import fsspec.core
from pydantic import AfterValidator

from raysim.core.errors import ConfigError
from raysim.core.formatting import redact
from raysim.data.image_files import files_of
from raysim.data.image_formats import IMAGE_SUFFIX, is_folder

OptionalPath = TypeVar("OptionalPath", str, str | None)
PROTOCOLS = ("file", "s3", "gs", "gcs", "abfs", "abfss", "az", "https", "memory", "zip", "tar")  # fsspec's names
SECRET = re.compile(
    r"://[^/@\s]*:[^/@\s]*@|https?://[^/@\s]*@"
    r"|[?&]([\w.-]*(signature|credential|token|password|secret|accesskey|accesskeyid|api[_-]?key)|sig|key)=",
    re.IGNORECASE,
)
SECRET_CURE = (
    "remove it from the URL, and store it in the configuration of the storage library (such as ~/.aws/credentials) on "
    "every node"
)


def absolute_path(path: OptionalPath) -> OptionalPath:
    """The absolute path; a URL, an empty path and None are returned unchanged.

    Raises ConfigError for a URL with a password or a key, because paths are written to files that users share.
    """
    return join_path(os.getcwd(), os.path.expanduser(check_url(path))) if path else path


def contains_secret(text: str) -> bool:
    """Whether `text` has a URL with a password, a token or a signature, or a web address with a user name."""
    return SECRET.search(text) is not None


def check_url(path: str) -> str:
    """`path`, unless it is a URL of an unsupported protocol or with a secret: raises ConfigError without the secret.

    fsspec supports many more protocols; some of them run code or commands, or connect to any address.
    """
    if contains_secret(path):
        raise ConfigError(f"{redact(path)} contains a password, a token or a signature; {SECRET_CURE}")
    *outer, last = path.split("::")
    protocols = [part.partition("://")[0] for part in outer] + ([last.partition("://")[0]] if "://" in last else [])
    if unknown := [each for each in protocols if each not in PROTOCOLS]:
        raise ConfigError(
            f"{path}: the protocol {unknown[0]} is not supported; use file, s3, gs, abfs or https, and zip or tar for "
            "a file in an archive, or copy the files to a folder"
        )
    return path


def stored_bytes(path: str) -> int:
    """The size of the files at a path or URL, at most that of the archive that has them; 0 if it is unknown."""
    if "://" not in path:
        return sum(map(os.path.getsize, files_of(path)))
    sizes = []
    for part in {path, path.rpartition("::")[2]}:
        store, name = fsspec.core.url_to_fs(part)
        sizes.append(store.du(name) if is_folder(path) else store.size(name) or 0)
    return int(min(sizes))


# For configuration fields: a run may be repeated from another working directory.
ABSOLUTE_PATH = AfterValidator(absolute_path)


def parent_folder(path: str) -> str:
    """The absolute path of the folder of a file; for a URL, everything to its last slash, and the chained container."""
    if "://" not in path:
        return os.path.dirname(os.path.abspath(path))
    head, chain, container = path.partition("::")
    return head[: head.rfind("/") + 1] + chain + container


def join_path(folder: str, path: str) -> str:
    """`path` as an absolute path or a full URL; a relative path starts at `folder`."""
    if "://" in path or os.path.isabs(path):
        return path
    if "://" not in folder:
        return os.path.abspath(os.path.join(folder, path))
    head, chain, container = folder.partition("::")
    return head + "/" * (not head.endswith("/")) + path.removeprefix("./") + chain + container


def missing_files(paths: Iterable[str]) -> list[str]:
    """The distinct paths without a file, in order. Raises ConfigError for a store that cannot be reached.

    Each folder is listed once, and only files that the listing lacks are checked one by one: thousands of files take
    one request per folder, and stores that cannot list, such as plain web servers, work too.
    """
    folders = {path: parent_folder(path) for path in paths}
    names = sorted(set(folders.values()))
    with ThreadPoolExecutor(16) as pool:
        listings = dict(zip(names, pool.map(_list_folder, names), strict=True))
        unlisted = [path for path, folder in folders.items() if _name_in_store(path) not in listings[folder]]
        found = list(pool.map(_exists, unlisted))
    return [path for path, exists in zip(unlisted, found, strict=True) if not exists]


def _name_in_store(path: str) -> str:
    """The path of the file within its store."""
    return str(fsspec.core.url_to_fs(path)[1])


def _list_folder(folder: str) -> set[str]:
    try:
        if "://" not in folder:  # is_file: a folder or a broken link may have the name of a file
            return {entry.path for entry in os.scandir(folder) if entry.is_file()}
        store, name = fsspec.core.url_to_fs(check_url(folder))
        return set(store.ls(name, detail=False))
    except (OSError, NotImplementedError):
        return set()
    except ConfigError:
        raise
    except Exception as reason:
        raise ConfigError(f"cannot list the files in {folder}: {reason}") from reason


def _exists(path: str) -> bool:
    if "://" not in path:
        return os.path.isfile(path) or (os.path.isdir(path) and not IMAGE_SUFFIX.search(path))  # of a DICOM series
    store, name = fsspec.core.url_to_fs(path)
    return bool(store.exists(name))
