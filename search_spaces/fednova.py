"""FedNova: learning rate, local epochs, momentum of the local SGD.

The local optimiser is SGD, so its learning rates differ from those of Adam. On the unequal sites of docs/claims.md
rates of 5e-4 to 8e-3 explain 18 to 24 % of the variance (at most 27 is possible) and 0.03 explains 12. A momentum of
0.9 is as good at 5e-4 and 2e-3 and diverges at 8e-3, so it needs about a tenth of the rate.
"""

from ray import tune

SPACE = {
    "algorithm": "fednova",
    "algorithm.lr": tune.loguniform(5e-4, 0.1),
    "algorithm.epochs": tune.randint(1, 6),
    "algorithm.momentum": tune.choice([0.0, 0.9]),
}
POINTS = [
    {"algorithm.lr": 0.05, "algorithm.epochs": 2, "algorithm.momentum": 0.0},
    {"algorithm.lr": 0.005, "algorithm.epochs": 2, "algorithm.momentum": 0.9},
]
