"""The shape of the code: files and functions stay readable, public names exist. Import contracts: pyproject.toml."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import raysim
import raysim.training
from tests.support.paths import ROOT

ENGINE = sorted((ROOT / "raysim").rglob("*.py"))
ALGORITHMS = sorted((ROOT / "algorithms").glob("*.py"))
PACKAGES = {
    *("core", "data", "tasks", "config", "training", "storage", "federation", "distributed", "search", "reporting"),
    "cli",
}
LINES = 300  # of a file
FUNCTION_LINES = 50
LIBRARIES = {"torch", "numpy", "annotated_types", *sys.stdlib_module_names}  # for an algorithm
PUBLISHING = (raysim, raysim.training)  # packages whose names are for users and for algorithms


def imported(path: Path) -> Iterator[str]:
    """The top-level name of each absolute import in the file, in functions too; "." for a relative one."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." if node.level else str(node.module).split(".")[0]


def long_functions(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            first = node.body[1 if ast.get_docstring(node) and len(node.body) > 1 else 0]
            if (node.end_lineno or 0) - first.lineno + 1 > FUNCTION_LINES:
                yield node.name


def test_the_engine_consists_of_its_packages() -> None:
    found = {path.relative_to(ROOT / "raysim").parts[0] for path in ENGINE}
    assert found == {*PACKAGES, "__init__.py", "__main__.py", "_version.py"}
    assert {path.parent for path in ENGINE} == {path.parent for path in ENGINE if path.name == "__init__.py"}


def test_the_folders_of_unit_tests_are_packages_of_the_engine() -> None:
    folders = {path.name for path in (ROOT / "tests" / "unit").iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders <= PACKAGES


def test_imports_are_absolute_and_the_engine_imports_no_test() -> None:
    for path in [*ENGINE, *ALGORITHMS]:
        assert not {".", "tests"} & set(imported(path)), path


def test_an_algorithm_imports_published_names_and_few_libraries() -> None:
    published = {f"{package.__name__}:{name}" for package in PUBLISHING for name in package.__all__}
    for path in ALGORITHMS:
        assert not set(imported(path)) - LIBRARIES - {"raysim", "algorithms"}, path
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        found = {f"{node.module}:{name.name}" for node in nodes for name in node.names}
        assert {name for name in found if name.startswith("raysim")} <= published, path


def test_files_and_functions_stay_readable() -> None:
    for path in [*ENGINE, *ALGORITHMS]:
        text = path.read_text()
        assert text.count("\n") <= LINES, path
        assert not list(long_functions(ast.parse(text))), path


def test_every_module_has_a_docstring() -> None:
    for path in [*ENGINE, *ALGORITHMS]:
        tree = ast.parse(path.read_text())
        assert path.name == "_version.py" or not tree.body or ast.get_docstring(tree), path


# What users and algorithms may import: a name is added or removed here on purpose.
PUBLISHED = [
    "ActorsPlaced",
    "Algorithm",
    "Array",
    "ConfigError",
    "Data",
    "Exchange",
    "Fleet",
    "LocalFleet",
    "LocalTraining",
    "Metrics",
    "Model",
    "Notice",
    "PlacementError",
    "PredictionSet",
    "Predictor",
    "Progress",
    "RaysimError",
    "Reply",
    "ResumePoint",
    "Round",
    "RoundEvent",
    "RunError",
    "RunFinished",
    "RunResult",
    "Score",
    "Site",
    "SiteError",
    "Split",
    "State",
    "Task",
    "UNCHANGED",
    "algorithm_class",
    "combine",
    "evaluate",
    "export",
    "federate",
    "full_resolution",
    "load",
    "load_config",
    "mean",
    "predict",
    "preserve_rng",
    "resume",
    "run",
    "task_class",
    "train_only",
    "tune",
    "weights",
]
PUBLISHED_TRAINING = [
    "Bank",
    "BestModels",
    "Features",
    "Gate",
    "GradientCorrection",
    "ImagePool",
    "OptimizerState",
    "OutsideAdaptation",
    "RoutedConvolution",
    "RoutedPredictor",
    "Router",
    "SelectorKind",
    "SelfSupervised",
    "Views",
    "add_to_gradients",
    "batches",
    "check_levels",
    "copy_trained",
    "dump_optimizer_state",
    "ema_update",
    "example_losses",
    "extrapolate_distance",
    "fit_selector",
    "from_vector",
    "gram_matrix",
    "has_convolution",
    "head_layer",
    "last_layer",
    "load_optimizer_state",
    "mean_cosine",
    "mean_entropy",
    "mean_shift",
    "mlp",
    "model_norm",
    "move_to_distance",
    "norm_layers",
    "pool_levels",
    "projector",
    "proximal_term",
    "relative_distance",
    "require_classes",
    "route_convolutions",
    "routers",
    "routing_ceiling",
    "sample_batches",
    "selector_batches",
    "selector_metrics",
    "selector_network",
    "tensor_distances",
    "to_vector",
    "total_distance",
    "translate",
    "use_batch_statistics",
    "validation_score",
    "weighted_variance",
    "within",
]


def test_published_names_are_pinned() -> None:
    assert set(raysim.__all__) == {*PUBLISHED, "__version__"}
    assert set(raysim.training.__all__) == set(PUBLISHED_TRAINING)


@pytest.mark.parametrize("package", PUBLISHING, ids=["raysim", "raysim.training"])
def test_published_names_exist_and_are_complete(package: Any) -> None:
    assert set(package.__all__) - {"__version__"} == set(package._MODULE)
    assert len(package.__all__) == len(set(package.__all__))
    for name, module in package._MODULE.items():
        assert getattr(package, name) is getattr(import_module(module), name), name
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'federat'"):
        package.federat  # noqa: B018 - the look-up is the test


def test_published_names_import_no_torch_monai_or_ray_before_they_are_used() -> None:
    code = "import sys, raysim, raysim.training; print({'torch', 'monai', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("package", PUBLISHING, ids=["raysim", "raysim.training"])
def test_no_published_name_is_also_a_module(package: Any) -> None:
    # `from raysim import x` would return the module, once something had imported it.
    assert not set(package.__all__) & {path.stem for path in Path(package.__file__).parent.iterdir()}
