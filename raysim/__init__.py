"""raysim: simulation and hyper-parameter search of federated medical imaging, on Ray.

Names are imported when they are first used, so that the command line can print its help without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from raysim._version import __version__

if TYPE_CHECKING:
    from raysim.errors import ConfigError, PlacementError, RaysimError, RunError, SiteError
    from raysim.fleet import LocalFleet
    from raysim.model import Model, combine, load, mean, weights
    from raysim.rounds import Start, federate
    from raysim.searching import search
    from raysim.training import LocalTraining
    from raysim.types import (
        KEEP,
        Algorithm,
        Answers,
        Data,
        Exchange,
        Fleet,
        Metrics,
        Predictor,
        Reply,
        Round,
        Score,
        Site,
        Split,
        State,
        Task,
    )

_HOME = {
    "raysim.errors": ("ConfigError", "PlacementError", "RaysimError", "RunError", "SiteError"),
    "raysim.fleet": ("LocalFleet",),
    "raysim.model": ("Model", "combine", "load", "mean", "weights"),
    "raysim.rounds": ("Start", "federate"),
    "raysim.searching": ("search",),
    "raysim.training": ("LocalTraining",),
    "raysim.types": (
        *("KEEP", "Algorithm", "Answers", "Data", "Exchange", "Fleet", "Metrics", "Predictor"),
        *("Reply", "Round", "Score", "Site", "Split", "State", "Task"),
    ),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "KEEP",
    "Algorithm",
    "Answers",
    "ConfigError",
    "Data",
    "Exchange",
    "Fleet",
    "LocalFleet",
    "LocalTraining",
    "Metrics",
    "Model",
    "PlacementError",
    "Predictor",
    "RaysimError",
    "Reply",
    "Round",
    "RunError",
    "Score",
    "Site",
    "SiteError",
    "Split",
    "Start",
    "State",
    "Task",
    "__version__",
    "combine",
    "federate",
    "load",
    "mean",
    "search",
    "weights",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'raysim' has no attribute {name!r}")
    return getattr(import_module(_MODULE[name]), name)
