"""MOON: learning rate, local epochs, weight and temperature of the contrastive term.

First points: mu 0.1, 1 and 5 with a temperature of 0.5, values compared by Li et al. 2021. On the class frequencies of
docs/claims.md (five epochs) mu up to 5 with temperatures of 0.1 and 0.5 changes the accuracy by at most 1 %. With 30
epochs mu 5 loses 3 % and mu 20 loses 5.
"""

from ray import tune

SPACE = {
    "algorithm": "moon",
    "algorithm.lr": tune.loguniform(5e-4, 2e-2),
    "algorithm.epochs": tune.randint(1, 6),
    "algorithm.mu": tune.loguniform(0.1, 5.0),
    "algorithm.temperature": tune.loguniform(0.1, 1.0),
}
POINTS = [
    {"algorithm.mu": 0.1, "algorithm.temperature": 0.5},
    {"algorithm.mu": 1.0, "algorithm.temperature": 0.5},
    {"algorithm.mu": 5.0, "algorithm.temperature": 0.5},
]
