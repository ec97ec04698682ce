"""Where files are: on this machine or behind any URL that fsspec knows."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import fsspec.core
from pydantic import AfterValidator

from raysim.core.errors import ConfigError


def absolute(path: str | None) -> str | None:
    """A path that means the same from any folder; a URL, an empty path and None stay as they are.

    Raises ConfigError for a URL with a password or a key: a path stands in files that are shown around.
    """
    if path and contains_secret(path):
        cure = "put it into the store's own configuration, on every node"
        raise ConfigError(f"a URL must not carry a password or a key; {cure}")
    return joined(os.getcwd(), os.path.expanduser(path)) if path else path


def contains_secret(text: str) -> bool:
    """Whether a URL in it has a password, or a web address a user, who is a key more often than a name."""
    return re.search(r"://[^/@\s]*:[^/@\s]*@|https?://[^/@\s]*@", text) is not None


ABSOLUTE_PATH = AfterValidator(absolute)  # for fields with a path: a run may be repeated from another folder


def folder_of(path: str) -> str:
    """The folder that a file lies in, absolute; of a URL, all up to its last slash, with what it is in."""
    if "://" not in path:
        return os.path.dirname(os.path.abspath(path))
    head, chain, container = path.partition("::")
    return head[: head.rfind("/") + 1] + chain + container


def joined(folder: str, path: str) -> str:
    """`path` as an absolute path or a full URL; a relative one is taken from `folder`."""
    if "://" in path or os.path.isabs(path):
        return path
    if "://" not in folder:
        return os.path.abspath(os.path.join(folder, path))
    head, chain, container = folder.partition("::")
    return head + "/" * (not head.endswith("/")) + path.removeprefix("./") + chain + container


def missing_files(paths: Iterable[str]) -> list[str]:
    """Those of `paths` where there is no file, each once, in their order. Raises ConfigError for a store out of reach.

    A folder is listed once and only what the listing lacks is asked for by name: thousands of files take one
    request per folder, and stores that cannot list, such as plain web servers, work too.
    """
    folders = {path: folder_of(path) for path in paths}
    names = sorted(set(folders.values()))
    with ThreadPoolExecutor(16) as pool:
        listed = dict(zip(names, pool.map(_listing, names), strict=True))
        unlisted = [path for path, folder in folders.items() if _name(path) not in listed[folder]]
        found = list(pool.map(_exists, unlisted))
    return [path for path, exists in zip(unlisted, found, strict=True) if not exists]


def _name(path: str) -> str:
    """What the file is called in its own store."""
    return str(fsspec.core.url_to_fs(path)[1])


def _listing(folder: str) -> set[str]:
    try:
        if "://" not in folder:  # where a folder, or a link to nothing, may have the name of a file
            return {entry.path for entry in os.scandir(folder) if entry.is_file()}
        store, name = fsspec.core.url_to_fs(folder)
        return set(store.ls(name, detail=False))
    except (OSError, NotImplementedError):
        return set()
    except Exception as reason:
        raise ConfigError(f"cannot look for files in {folder}: {reason}") from reason


def _exists(path: str) -> bool:
    if "://" not in path:
        return os.path.isfile(path)
    store, name = fsspec.core.url_to_fs(path)
    return bool(store.exists(name))
