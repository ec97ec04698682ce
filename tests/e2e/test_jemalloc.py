"""The process keeps freed memory for the next step, and returns it to the system when it is settled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray

JEMALLOC = Path(ray.__file__).parent / "core" / "libjemalloc.so"
SCRIPT = """
import json, time
import numpy as np
from raysim.distributed import jemalloc

def own():
    text = open("/proc/self/status").read()
    return int(text.partition("RssAnon:")[2].split()[0]) / 1024

sizes = []
mine = jemalloc.JemallocPurger()
for _ in range(2):
    start = own()
    held = [np.ones(2**18) for _ in range(100)]  # 200 MB, in arrays of 2 MB
    del held
    sizes.append(own() - start)
    mine.settle()
    sizes.append(own() - start)
    jemalloc.MEMORY_PURGE_INTERVAL_S = 0
print(json.dumps(sizes))
"""


def grown(preload: str) -> list[float]:
    """Growth in MB: after memory was freed, after settling too early, after freeing again, after settling."""
    env = {**os.environ, "LD_PRELOAD": preload, "MALLOC_CONF": ""}
    done = subprocess.run([sys.executable, "-c", SCRIPT], check=True, env=env, capture_output=True, text=True)
    sizes: list[float] = json.loads(done.stdout)
    return sizes


@pytest.mark.skipif(not JEMALLOC.exists(), reason="this Ray ships no jemalloc")
def test_jemalloc_keeps_freed_memory_until_it_is_settled() -> None:
    freed, early, again, settled = grown(str(JEMALLOC))
    assert freed > 150
    assert early > 150
    assert again < 50  # the same memory, used again
    assert settled < -150


def test_another_allocator_is_not_changed() -> None:
    assert max(grown("")) < 50
