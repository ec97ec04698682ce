"""FedDG-GA: learning rate, local epochs, step size of the weights.

First points: step 0.2, the default of the authors' code, and two larger ones. Where one of six sites has inverted
contrast (docs/claims.md, 30 rounds), outside Dice is 34 with step 0.02, 54 with 0.05, and 99 with 0.2 and 1; FedAvg has
13. To compare trials by outside sites, use --metric outside.
"""

from ray import tune

SPACE = {
    "algorithm": "feddg_ga",
    "algorithm.lr": tune.loguniform(5e-4, 2e-2),
    "algorithm.epochs": tune.randint(1, 6),
    "algorithm.step": tune.loguniform(0.05, 1.0),
}
POINTS = [
    {"algorithm.step": 0.2},
    {"algorithm.step": 0.5},
    {"algorithm.step": 1.0},
]
