"""LocalOnly: learning rate, local epochs, weight decay.

The lower reference of a comparison also needs a search: a method should exceed its best result.
"""

from ray import tune

SPACE = {
    "algorithm": "localonly",
    "algorithm.lr": tune.loguniform(1e-4, 1e-2),
    "algorithm.epochs": tune.randint(1, 6),
    "algorithm.weight_decay": tune.choice([0.0, 1e-4, 1e-2]),
}
POINTS = [
    {"algorithm.lr": 1e-3, "algorithm.epochs": 1, "algorithm.weight_decay": 0.0},
]
