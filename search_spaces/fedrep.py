"""FedRep: learning rate, epochs of the head, epochs of the other layers.

First points: ten epochs of the head, and one or five of the other layers, near the values of Collins et al. 2021.
To search FedPer, add algorithm.joint=true algorithm.head_epochs=1, which FedPer does not use.
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
