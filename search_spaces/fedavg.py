"""FedAvg: learning rate, local epochs, cohort.

First points: one and five local epochs, two of the values compared by McMahan et al. 2017.
"""

from ray import tune

SPACE = {
    "algorithm": "fedavg",
    "algorithm.lr": tune.loguniform(1e-4, 1e-2),
    "algorithm.epochs": tune.randint(1, 6),
    "cohort.size": tune.choice([0.5, 1.0]),
}
POINTS = [
    {"algorithm.lr": 1e-3, "algorithm.epochs": 1, "cohort.size": 1.0},
    {"algorithm.lr": 1e-3, "algorithm.epochs": 5, "cohort.size": 1.0},
]
