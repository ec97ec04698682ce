"""Gradient alignment: strength of the alignment loss, learning rate of the local SGD.

The paper's values are not known to us. On a problem with a spurious feature (tests/claims/) the effect on an unseen
site begins near a strength of 10 and is large from 100 on. The first point, strength 0, is FedAvg with local SGD.
"""

from ray import tune

SPACE = {
    "algorithm": "gradient_alignment",
    "algorithm.optimizer": "sgd",
    "algorithm.momentum": 0.0,
    "algorithm.strength": tune.loguniform(1e-1, 1e3),
    "algorithm.lr": tune.loguniform(1e-3, 1e-1),
}
POINTS = [
    {"algorithm.strength": 0.0, "algorithm.lr": 5e-2},
    {"algorithm.strength": 1.0, "algorithm.lr": 5e-2},
    {"algorithm.strength": 10.0, "algorithm.lr": 5e-2},
    {"algorithm.strength": 100.0, "algorithm.lr": 5e-2},
    {"algorithm.strength": 1000.0, "algorithm.lr": 5e-2},
]
