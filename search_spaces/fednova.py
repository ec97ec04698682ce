"""FedNova: learning rate, local epochs, momentum of the local SGD.

The local optimiser is SGD, so its learning rates differ from those of Adam.
"""

from ray import tune

SPACE = {
    "algorithm": "fednova",
    "algorithm.lr": tune.loguniform(1e-3, 0.3),
    "algorithm.epochs": tune.randint(1, 6),
    "algorithm.momentum": tune.choice([0.0, 0.9]),
}
POINTS = [
    {"algorithm.lr": 0.05, "algorithm.epochs": 2, "algorithm.momentum": 0.0},
    {"algorithm.lr": 0.05, "algorithm.epochs": 2, "algorithm.momentum": 0.9},
]
