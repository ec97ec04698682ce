"""IOP-FL: momentum of the personal models, learning rate and loss weights of the adaptation outside.

First points: alpha 0.1 and the weights of the authors' code, and alpha 0.5, which later work uses. To compare trials by
outside sites, use --metric outside.
"""

from ray import tune

SPACE = {
    "algorithm": "iopfl",
    "algorithm.alpha": tune.uniform(0.0, 0.99),
    "algorithm.outside_lr": tune.loguniform(1e-5, 1e-2),
    "algorithm.entropy": tune.loguniform(0.1, 100.0),
    "algorithm.consistency": tune.loguniform(0.01, 10.0),
    "algorithm.shape": tune.loguniform(1e-8, 1e-4),
}
PUBLISHED = {
    "algorithm.outside_lr": 1e-3,
    "algorithm.entropy": 10.0,
    "algorithm.consistency": 0.1,
    "algorithm.shape": 1e-6,
}
POINTS = [
    {"algorithm.alpha": 0.1, **PUBLISHED},
    {"algorithm.alpha": 0.5, **PUBLISHED},
]
