"""FedALA: learning rate, mixed layers, step size of the mixing weights, part of the data.

First points: a step size of 1 and 80 % of the data, the values of Zhang et al. 2023, with one and two layers.
On the problem of docs/claims.md a step size of 0.1 to 1 gains 3 % of accuracy over FedAvg, 10 and 30 gain 11.
"""

from ray import tune

SPACE = {
    "algorithm": "fedala",
    "algorithm.lr": tune.loguniform(1e-4, 1e-2),
    "algorithm.layers": tune.randint(1, 5),
    "algorithm.weight_lr": tune.loguniform(1.0, 30.0),
    "algorithm.part": tune.choice([0.2, 0.8, 1.0]),
}
POINTS = [
    {"algorithm.layers": 1, "algorithm.weight_lr": 1.0, "algorithm.part": 0.8},
    {"algorithm.layers": 2, "algorithm.weight_lr": 1.0, "algorithm.part": 0.8},
]
