"""MOON: learning rate, local epochs, weight and temperature of the contrastive term.

First points: mu 0.1, 1, 5 and 10 with a temperature of 0.5, the values compared by Li et al. 2021.
"""

from ray import tune

SPACE = {
    "algorithm": "moon",
    "algorithm.lr": tune.loguniform(1e-4, 1e-2),
    "algorithm.epochs": tune.randint(1, 6),
    "algorithm.mu": tune.loguniform(0.05, 10.0),
    "algorithm.temperature": tune.loguniform(0.1, 1.0),
}
POINTS = [
    {"algorithm.mu": 0.1, "algorithm.temperature": 0.5},
    {"algorithm.mu": 1.0, "algorithm.temperature": 0.5},
    {"algorithm.mu": 5.0, "algorithm.temperature": 0.5},
    {"algorithm.mu": 10.0, "algorithm.temperature": 0.5},
]
