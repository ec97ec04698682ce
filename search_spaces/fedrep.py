"""FedRep: learning rate, epochs of the head, epochs of the other layers.

First points: ten epochs of the head, and one or five of the other layers, near the values of Collins et al. 2021.
To search FedPer, add algorithm.joint=true algorithm.head_epochs=1, which FedPer does not use. On the shared directions
of docs/claims.md the accuracy is 80 and 81 % with one epoch of the head, and 81 to 85 with 5 to 15.
"""

from ray import tune

SPACE = {
    "algorithm": "fedrep",
    "algorithm.lr": tune.loguniform(5e-4, 3e-2),
    "algorithm.head_epochs": tune.randint(3, 11),
    "algorithm.epochs": tune.randint(1, 6),
}
POINTS = [
    {"algorithm.head_epochs": 10, "algorithm.epochs": 1},
    {"algorithm.head_epochs": 10, "algorithm.epochs": 5},
]
