"""FedRoD: learning rate, local epochs, weight of the class frequencies.

First points: gamma 1, the balanced softmax of Chen and Chao 2022, and 0, the plain loss.
"""

from ray import tune

SPACE = {
    "algorithm": "fedrod",
    "algorithm.lr": tune.loguniform(1e-4, 1e-2),
    "algorithm.epochs": tune.randint(1, 6),
    "algorithm.gamma": tune.choice([0.0, 0.5, 1.0]),
}
POINTS = [
    {"algorithm.lr": 1e-3, "algorithm.gamma": 1.0},
    {"algorithm.lr": 1e-3, "algorithm.gamma": 0.0},
]
