"""Tests that need a new Python process: few imports, stable seeds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from raysim.core.seeding import stable_seed
from tests.support.finished_runs import write_run
from tests.support.paths import ROOT


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
    code = "import sys, raysim.data.table, raysim.data.summarize, raysim.cli.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_status_and_stop_import_neither_torch_nor_pandas() -> None:
    code = "import sys, raysim.cli.status; print({'torch', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_client_actor_imports_no_pandas() -> None:
    code = (
        "import sys, raysim.distributed.client_actor, raysim.tasks.synthetic, raysim.tasks.losses\n"
        "print({'pandas', 'pyarrow', 'scipy', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_monai_imports_modules_for_plots_and_signals_when_it_uses_them() -> None:
    code = (
        "import sys, raysim, monai\n"
        "print({'matplotlib', 'optuna', 'pandas', 'pydicom', 'scipy.ndimage', 'scipy.sparse'} & set(sys.modules))\n"
        "from monai.data.ultrasound_confidence_map import hilbert\n"
        "from monai.transforms.signal.array import iirnotch\n"
        "from monai.utils.jupyter_utils import plt\n"
        "import matplotlib.pyplot, numpy, scipy.signal\n"
        "print(plt.Figure is matplotlib.pyplot.Figure, numpy.iscomplexobj(hilbert([1.0, 2.0, 1.0])))\n"
        "from monai.metrics.utils import KDTree, distance_transform_edt, scipy_ndimage\n"
        "from monai.networks.nets.dints import csr_matrix, dijkstra\n"
        "print(len(iirnotch(0.1, 0.3)), distance_transform_edt([1, 1, 0]), scipy_ndimage.label([1, 0, 1])[1])\n"
        "print(dijkstra(csr_matrix([[0, 3], [0, 0]]), indices=0), KDTree([[0], [2]]).n)\n"
        "print(monai.__spec__.loader.name, monai.data.dataset.pd.DataFrame.__name__)\n"
        "from nibabel.nifti1 import Nifti1DicomExtension\n"
        "print(type(Nifti1DicomExtension(2, None).get_content()).__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:-1] == [
        *("set()", "True True", "2 [2. 1. 0.] 2", "[0. 3.] 2", "monai DataFrame", "pydicom.dataset"),
    ]


def test_runs_are_listed_and_compared_without_torch(tmp_path: Path) -> None:
    for number in range(2):
        write_run(tmp_path / str(number), {"a": [0.5, 0.6]}, f"rounds={number + 1}")
    code = (
        "import sys\nfrom raysim.cli.main import main\n"
        "code = main(['compare', sys.argv[1]]) or main(['runs', sys.argv[1]])\n"
        "print('heavy', [m for m in ('torch', 'ray', 'monai', 'matplotlib') if m in sys.modules])\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("heavy []\n")


REFUSED_AT_ONCE = {
    ("task=segmentation", "task.data.table=gone.csv"): "gone.csv",
    ("task=segmentation", "task.data.table=no_label.csv"): "it has no column 'label'",
    ("task=segmentation", "task.data.table=no_files.csv"): "files that do not exist: ",
    ("task=classification", "task.data.table=classes.csv", "task.data.classes=[a]"): "expected at least 2 items",
    ("task=classification", "task.data.table=classes.csv", "task.data.classes=[a,c]"): "'b'",
    ("task=tabular", "task.data.table=classes.csv", "task.data.features=[age]"): "age",
    ("task=tabular", "task.data.table=classes.csv", "task.data.outside=[C]"): "unknown site in task.data.outside: 'C'",
    ("rondus=3",): "did you mean 'rounds'",
    ("mu=3", "algorithm=fedprox"): "did you mean 'algorithm.mu'",
    ("nonsense=3",): "unknown key 'nonsense'",
    ("algorithm.lrr=3",): "did you mean 'algorithm.lr'",
    ("algorithm=fedavgg",): "did you mean 'fedavg'",
    ("task=synthetik",): "did you mean 'synthetic'",
    ("task.metrics=[dise]",): "did you mean 'dice'",
    ("chaos=explode",): "explode",
    ("network=unett",): "unknown network 'unett' (did you mean 'UNet'?)",
    ("task.loss=dise",): "unknown loss 'dise' (did you mean 'Dice'?)",
    ("task=tabular", "task.data.table=classes.csv", "network=mlpp"): "unknown network 'mlpp' (did you mean 'mlp'?)",
    ("tune", "fedsn"): "did you mean 'fedsm'",
    ("tune", "--space", "algorithm.lr=logunifrm(0.1,1)"): "did you mean 'loguniform'",
    ("tune", "--space", "algorithm.lrr=uniform(0,1)"): "did you mean 'algorithm.lr'",
    ("tune", "fedsm", "--space", "algorithm.pul=uniform(0,1)"): "did you mean 'algorithm.pull'",
    ("tune", "methods", "--space", "algorithm.fedsm.pul=uniform(0,1)"): "did you mean 'algorithm.pull'",
    ("tune", "methods", "rondus=3"): "did you mean 'rounds'",
}


def test_errors_in_keys_and_tables_are_found_without_torch_or_ray(tmp_path: Path) -> None:
    (tmp_path / "image.png").touch()
    (tmp_path / "no_label.csv").write_text("site,split,image\nA,train,image.png\n")
    (tmp_path / "no_files.csv").write_text("site,split,image,label\nA,train,gone.png,gone_mask.png\n")
    (tmp_path / "classes.csv").write_text("site,split,image,label,x\nA,train,image.png,a,1\nA,test,image2.png,b,2\n")
    (tmp_path / "image2.png").touch()
    code = (
        "import sys\nfrom raysim.cli.main import main\n"
        "for line in sys.stdin.read().splitlines():\n"
        "    command = [] if line.startswith('tune') else ['run']\n"
        "    assert main([*command, *line.split()]) == 2\n"
        "    print('heavy', [m for m in ('torch', 'ray', 'monai') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input="\n".join(map(" ".join, REFUSED_AT_ONCE)),
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    lines = done.stderr.splitlines()
    assert [line for line in lines if line.startswith("heavy")] == ["heavy []"] * len(REFUSED_AT_ONCE)
    errors = [line for line in lines if line.startswith("raysim: ")]
    for arguments, error in zip(REFUSED_AT_ONCE, errors, strict=True):
        assert REFUSED_AT_ONCE[arguments] in error, arguments
    assert not list(tmp_path.glob("runs"))
