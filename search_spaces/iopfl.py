"""IOP-FL: momentum of the personal models, learning rate of the adaptation outside.

First points: alpha 0.1 and the rate of the authors' code, and alpha 0.5, which later work uses. On the discs of
docs/claims.md personal models have 96 to 97 Dice with alpha 0 to 0.9, and 83 with 0.99. Outside, Dice is 68 at an
outside_lr of 1e-4, 80 at 1e-3 and 97 at 0.01. The loss weights entropy (0.1 to 100), consistency (10) and shape (1e-4)
change it by less than 0.5, so they are no keys here. To compare trials by outside sites, use --metric outside.
"""

from ray import tune

SPACE = {
    "algorithm": "iopfl",
    "algorithm.alpha": tune.uniform(0.0, 0.9),
    "algorithm.outside_lr": tune.loguniform(3e-4, 3e-2),
}
POINTS = [
    {"algorithm.alpha": 0.1, "algorithm.outside_lr": 1e-3},
    {"algorithm.alpha": 0.5, "algorithm.outside_lr": 1e-3},
    {"algorithm.alpha": 0.1, "algorithm.outside_lr": 1e-2},
]
