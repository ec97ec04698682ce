"""FedProx: learning rate, local epochs, weight of the proximal term.

First points: mu 0.001, 0.01, 0.1 and 1, the values compared by Li et al. 2020.
"""

from ray import tune

SPACE = {
    "algorithm": "fedprox",
    "algorithm.lr": tune.loguniform(1e-4, 1e-2),
    "algorithm.epochs": tune.randint(1, 6),
    "algorithm.mu": tune.loguniform(1e-3, 1.0),
}
POINTS = [
    {"algorithm.mu": 0.001},
    {"algorithm.mu": 0.01},
    {"algorithm.mu": 0.1},
    {"algorithm.mu": 1.0},
]
