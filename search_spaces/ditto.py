"""Ditto: learning rate, lambda, epochs of the personal models.

First points: lambda 0.1, 1 and 2, the values compared by Li et al. 2021. On the problem of docs/claims.md 0.01 is best,
and from 3 on the personal models are hardly better than the global one.
"""

from ray import tune

SPACE = {
    "algorithm": "ditto",
    "algorithm.lr": tune.loguniform(1e-4, 1e-2),
    "algorithm.lam": tune.loguniform(1e-2, 3.0),
    "algorithm.personal_epochs": tune.randint(1, 6),
}
POINTS = [
    {"algorithm.lam": 0.1, "algorithm.personal_epochs": 1},
    {"algorithm.lam": 1.0, "algorithm.personal_epochs": 1},
    {"algorithm.lam": 2.0, "algorithm.personal_epochs": 1},
]
