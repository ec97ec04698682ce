"""APFL: learning rate, first weight of the personal models, step size of the weight.

First points: weights 0.25, 0.5 and 0.75, the values compared by Deng et al. 2020, and the learned weight.
"""

from ray import tune

SPACE = {
    "algorithm": "apfl",
    "algorithm.lr": tune.loguniform(1e-4, 1e-2),
    "algorithm.alpha": tune.uniform(0.1, 0.9),
    "algorithm.alpha_lr": tune.loguniform(1e-2, 10.0),
}
POINTS = [
    {"algorithm.alpha": 0.25, "algorithm.alpha_lr": 0.1},
    {"algorithm.alpha": 0.5, "algorithm.alpha_lr": 0.1},
    {"algorithm.alpha": 0.75, "algorithm.alpha_lr": 0.1},
    {"algorithm.alpha": 0.5, "algorithm.alpha_lr": 1.0},
]
