"""Shared parts of training methods: local training, pre-training, test-time adaptation and model geometry.

Each name is imported at its first use, so that the command line starts without importing torch or MONAI.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysim.core.targets import require_classes
    from raysim.training.batching import batches
    from raysim.training.contrastive_views import ImagePool, Views, check_levels, pool_levels, sample_batches
    from raysim.training.encoders import ema_update, mlp, projector
    from raysim.training.feature_bank import Bank, Features
    from raysim.training.heads import head_layer, last_layer, within
    from raysim.training.image_routing import RoutedPredictor, example_losses, routing_ceiling
    from raysim.training.local_training import GradientCorrection, add_to_gradients, copy_trained, proximal_term
    from raysim.training.model_geometry import (
        extrapolate_distance,
        from_vector,
        gram_matrix,
        mean_cosine,
        mean_shift,
        model_norm,
        move_to_distance,
        relative_distance,
        tensor_distances,
        to_vector,
        total_distance,
        translate,
        weighted_variance,
    )
    from raysim.training.model_selection import BestModels, validation_score
    from raysim.training.optimizers import OptimizerState, dump_optimizer_state, load_optimizer_state
    from raysim.training.routed_convolutions import (
        Gate,
        RoutedConvolution,
        Router,
        has_convolution,
        route_convolutions,
        routers,
    )
    from raysim.training.selector_networks import SelectorKind, selector_network
    from raysim.training.selector_training import fit_selector, selector_batches, selector_metrics
    from raysim.training.self_supervised import SelfSupervised
    from raysim.training.test_time_adaptation import (
        OutsideAdaptation,
        mean_entropy,
        norm_layers,
        use_batch_statistics,
    )

_HOME = {
    "raysim.core.targets": ("require_classes",),
    "raysim.training.contrastive_views": ("ImagePool", "Views", "check_levels", "pool_levels", "sample_batches"),
    "raysim.training.batching": ("batches",),
    "raysim.training.heads": ("head_layer", "last_layer", "within"),
    "raysim.training.image_routing": ("RoutedPredictor", "example_losses", "routing_ceiling"),
    "raysim.training.local_training": ("GradientCorrection", "add_to_gradients", "copy_trained", "proximal_term"),
    "raysim.training.model_geometry": (
        *("extrapolate_distance", "from_vector", "gram_matrix", "mean_cosine", "mean_shift", "model_norm"),
        *(
            "move_to_distance",
            "relative_distance",
            "tensor_distances",
            "to_vector",
            "total_distance",
            "translate",
            "weighted_variance",
        ),
    ),
    "raysim.training.encoders": ("ema_update", "mlp", "projector"),
    "raysim.training.feature_bank": ("Bank", "Features"),
    "raysim.training.model_selection": ("BestModels", "validation_score"),
    "raysim.training.optimizers": ("OptimizerState", "dump_optimizer_state", "load_optimizer_state"),
    "raysim.training.routed_convolutions": (
        *("Gate", "RoutedConvolution", "Router", "has_convolution", "route_convolutions", "routers"),
    ),
    "raysim.training.selector_networks": ("SelectorKind", "selector_network"),
    "raysim.training.selector_training": ("fit_selector", "selector_batches", "selector_metrics"),
    "raysim.training.self_supervised": ("SelfSupervised",),
    "raysim.training.test_time_adaptation": (
        *("OutsideAdaptation", "mean_entropy", "norm_layers", "use_batch_statistics"),
    ),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
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


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'raysim.training' has no attribute {name!r}")
    return getattr(import_module(_MODULE[name]), name)
