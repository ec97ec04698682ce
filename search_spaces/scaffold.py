"""SCAFFOLD: learning rates of sites and server, local epochs.

The local optimiser is plain SGD, so its learning rates differ from those of Adam. First points: a server learning rate
of 1, as in the paper. On the problem of docs/claims.md 0.3 and 1 are equal, and 0.1 and 2 are worse.
"""

from ray import tune

SPACE = {
    "algorithm": "scaffold",
    "algorithm.lr": tune.loguniform(1e-3, 0.3),
    "algorithm.server_lr": tune.loguniform(0.3, 2.0),
    "algorithm.epochs": tune.randint(1, 6),
}
POINTS = [
    {"algorithm.lr": 0.05, "algorithm.server_lr": 1.0, "algorithm.epochs": 1},
    {"algorithm.lr": 0.05, "algorithm.server_lr": 1.0, "algorithm.epochs": 5},
]
