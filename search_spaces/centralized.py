"""Centralized training on the data of all sites: learning rate, weight decay, schedule.

The upper reference of a comparison also needs a search. The optimizer continues over rounds, so a schedule matters more
than in a federation.
"""

from ray import tune

SPACE = {
    "algorithm": "centralized",
    "algorithm.lr": tune.loguniform(1e-4, 1e-2),
    "algorithm.weight_decay": tune.choice([0.0, 1e-4, 1e-2]),
    "algorithm.schedule": tune.choice(["constant", "cosine"]),
}
POINTS = [
    {"algorithm.lr": 1e-3, "algorithm.weight_decay": 0.0, "algorithm.schedule": "constant"},
]
