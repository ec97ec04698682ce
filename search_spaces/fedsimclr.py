"""Federated SimCLR: temperature, learning rate, local epochs.

First points: temperatures 0.1 and 0.5, two of the values compared by Chen et al. 2020.
"""

from ray import tune

SPACE = {
    "algorithm": "fedsimclr",
    "algorithm.lr": tune.loguniform(1e-4, 1e-2),
    "algorithm.temperature": tune.loguniform(0.05, 1.0),
    "algorithm.epochs": tune.randint(1, 6),
}
POINTS = [
    {"algorithm.temperature": 0.1},
    {"algorithm.temperature": 0.5},
]
