"""raysim: simulation and hyper-parameter search for federated learning on medical images, with Ray.

A name is imported when it is first used, so that the command line prints its help without importing torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from raysim._version import __version__
from raysim.core import builtin_packages, monai_import

builtin_packages.install_finder()
monai_import.install_finder()

if TYPE_CHECKING:
    from raysim.config.resolve import load_config
    from raysim.core.aggregation import combine, mean
    from raysim.core.contracts import (
        UNCHANGED,
        Algorithm,
        Array,
        Data,
        Exchange,
        Fleet,
        Metrics,
        PredictionSet,
        Predictor,
        Reply,
        Site,
        Split,
        State,
        Task,
    )
    from raysim.core.errors import ConfigError, PlacementError, RaysimError, RunError, SiteError
    from raysim.core.events import ActorsPlaced, Notice, Progress, RoundEvent, RunFinished
    from raysim.core.model import Model, load, weights
    from raysim.core.network_factories import train_only
    from raysim.core.network_outputs import full_resolution
    from raysim.core.registry import algorithm_class, task_class
    from raysim.core.results import ResumePoint, Round, RunResult, Score
    from raysim.core.seeding import preserve_rng
    from raysim.distributed.finished_run_commands import evaluate, predict
    from raysim.distributed.launcher import resume, run
    from raysim.federation.export import export
    from raysim.federation.fleet import LocalFleet
    from raysim.federation.round_loop import federate
    from raysim.search.api import tune
    from raysim.training.local_training import LocalTraining

_HOME = {
    "raysim.config.resolve": ("load_config",),
    "raysim.core.events": ("ActorsPlaced", "Notice", "Progress", "RoundEvent", "RunFinished"),
    "raysim.core.errors": ("ConfigError", "PlacementError", "RaysimError", "RunError", "SiteError"),
    "raysim.distributed.finished_run_commands": ("evaluate", "predict"),
    "raysim.distributed.launcher": ("resume", "run"),
    "raysim.federation.export": ("export",),
    "raysim.federation.fleet": ("LocalFleet",),
    "raysim.core.aggregation": ("combine", "mean"),
    "raysim.core.model": ("Model", "load", "weights"),
    "raysim.core.network_factories": ("train_only",),
    "raysim.core.network_outputs": ("full_resolution",),
    "raysim.core.registry": ("algorithm_class", "task_class"),
    "raysim.core.seeding": ("preserve_rng",),
    "raysim.federation.round_loop": ("federate",),
    "raysim.search.api": ("tune",),
    "raysim.training.local_training": ("LocalTraining",),
    "raysim.core.results": ("ResumePoint", "Round", "RunResult", "Score"),
    "raysim.core.contracts": (
        *("UNCHANGED", "Algorithm", "Array", "PredictionSet", "Data", "Exchange", "Fleet", "Metrics", "Predictor"),
        *("Reply", "Site", "Split", "State", "Task"),
    ),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "UNCHANGED",
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
    "__version__",
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


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'raysim' has no attribute {name!r}")
    return getattr(import_module(_MODULE[name]), name)
