"""ELCFS: learning rate, exchanged frequencies, step size of the episode.

First points: windows 0.01 and 0.05 with the step size of the authors' code, 0.001. A window below 1 divided by the
shortest side changes only the mean, which images with task.data.intensity=zscore do not have. At the brightness between
those of the sites (docs/claims.md), windows of 0 to 0.2 and step sizes of 0 to 0.1 have a Dice of 84 to 90, and FedAvg
has 35. So the learning rate matters most.
"""

from ray import tune

SPACE = {
    "algorithm": "elcfs",
    "algorithm.lr": tune.loguniform(5e-4, 2e-2),
    "algorithm.window": tune.choice([0.01, 0.05, 0.1]),
    "algorithm.meta_lr": tune.choice([0.0, 1e-3, 1e-2]),
}
POINTS = [
    {"algorithm.window": 0.01, "algorithm.meta_lr": 1e-3},
    {"algorithm.window": 0.05, "algorithm.meta_lr": 1e-3},
]
