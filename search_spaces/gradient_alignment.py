"""Gradient alignment: weight of the correction, learning rate.

The papers report no weight. The points are fractions of the mean step: 0, 0.01, 0.05, 0.1, 0.3 and 1.
"""

from ray import tune

SPACE = {
    "algorithm": "gradient_alignment",
    "algorithm.weight": tune.uniform(0.0, 1.0),
    "algorithm.lr": tune.loguniform(1e-4, 1e-2),
}
POINTS = [
    {"algorithm.weight": 0.0, "algorithm.lr": 1e-3},
    {"algorithm.weight": 0.01, "algorithm.lr": 1e-3},
    {"algorithm.weight": 0.05, "algorithm.lr": 1e-3},
    {"algorithm.weight": 0.1, "algorithm.lr": 1e-3},
    {"algorithm.weight": 0.3, "algorithm.lr": 1e-3},
    {"algorithm.weight": 1.0, "algorithm.lr": 1e-3},
]
