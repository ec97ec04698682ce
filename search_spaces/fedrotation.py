"""Federated rotation prediction: learning rate, local epochs."""

from ray import tune

SPACE = {
    "algorithm": "fedrotation",
    "algorithm.lr": tune.loguniform(1e-4, 1e-2),
    "algorithm.epochs": tune.randint(1, 6),
}
POINTS = [
    {"algorithm.lr": 1e-3, "algorithm.epochs": 1},
]
