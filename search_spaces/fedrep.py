"""FedRep: learning rate, passes that train the head and passes that train the rest.

First points: ten passes for the head and one for the rest, near what Collins et al. 2021 take.
"""

from ray import tune

SPACE = {
    "algorithm": "fedrep",
    "algorithm.lr": tune.loguniform(1e-4, 1e-2),
    "algorithm.head_epochs": tune.randint(1, 16),
    "algorithm.epochs": tune.randint(1, 6),
}
POINTS = [
    {"algorithm.head_epochs": 10, "algorithm.epochs": 1},
    {"algorithm.head_epochs": 10, "algorithm.epochs": 5},
]
