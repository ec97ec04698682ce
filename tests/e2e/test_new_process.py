"""Tests that need a new Python process: few imports, stable seeds."""

from __future__ import annotations

import subprocess
import sys

import pytest

from raysim.core.seeding import stable_seed


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["data", "scan", "--help"], []])
def test_help_imports_neither_torch_nor_ray(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom raysim.cli.main import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n"
        "    assert not end.code\nprint('heavy', [m for m in ('torch', 'ray', 'monai', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("heavy []\n")
    assert "usage: raysim" in done.stdout


def test_a_seed_is_the_same_in_every_process() -> None:
    code = "from raysim.core.seeding import stable_seed; print(stable_seed(1, 2, 'call', 'site'))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(other.stdout) == stable_seed(1, 2, "call", "site")
    assert 0 <= stable_seed(1, 2, "call", "site") < 2**63


def test_a_list_of_names_does_not_import_torch() -> None:
    code = "import sys; from raysim.core import registry as r; r.algorithms(); r.tasks(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_table_is_read_without_torch() -> None:
    code = "import sys, raysim.data.table, raysim.data.summarize; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_status_and_stop_import_neither_torch_nor_pandas() -> None:
    code = "import sys, raysim.cli.status; print({'torch', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
