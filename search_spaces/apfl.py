"""APFL: learning rate, first weight of the personal models, step size of the weight.

First points: weights 0.25, 0.5 and 0.75, the values compared by Deng et al. 2020, and a faster change of the weight. On
the problem of docs/claims.md steps of 0.01 to 10 differ by less than 1 % of accuracy, and weights of 0.1 to 0.9 by 1.4.
"""

from ray import tune

SPACE = {
    "algorithm": "apfl",
    "algorithm.lr": tune.loguniform(1e-4, 1e-2),
    "algorithm.alpha": tune.uniform(0.1, 0.9),
    "algorithm.alpha_lr": tune.loguniform(0.1, 1.0),
}
POINTS = [
    {"algorithm.alpha": 0.25, "algorithm.alpha_lr": 0.1},
    {"algorithm.alpha": 0.5, "algorithm.alpha_lr": 0.1},
    {"algorithm.alpha": 0.75, "algorithm.alpha_lr": 0.1},
    {"algorithm.alpha": 0.5, "algorithm.alpha_lr": 1.0},
]
