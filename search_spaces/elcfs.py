"""ELCFS: learning rate, exchanged frequencies, step size of the episode.

First points: windows 0.01, 0.05 and 0.1 with the step size of the authors' code, 0.001. A window below 1 divided by the
shortest side changes only the mean, which images with task.data.intensity=zscore do not have.
"""

from ray import tune

SPACE = {
    "algorithm": "elcfs",
    "algorithm.lr": tune.loguniform(1e-4, 1e-2),
    "algorithm.window": tune.choice([0.01, 0.03, 0.05, 0.1]),
    "algorithm.meta_lr": tune.choice([0.0, 1e-3, 1e-2]),
}
POINTS = [
    {"algorithm.window": 0.01, "algorithm.meta_lr": 1e-3},
    {"algorithm.window": 0.05, "algorithm.meta_lr": 1e-3},
    {"algorithm.window": 0.1, "algorithm.meta_lr": 1e-3},
]
