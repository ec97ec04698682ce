"""Federated SimCLR: temperature, learning rate, local epochs.

First points: temperatures 0.1 and 0.5, two of the values compared by Chen et al. 2020. With one labelled volume per
site (docs/claims.md, 80 steps of pre-training) Dice is 36 from a random start, 40 with a learning rate of 1e-3, 45 with
0.01, 65 with 0.03 and 70 with 0.1. At 0.01 temperatures of 0.05 to 1 have 45 to 46, and three times the steps 56.
"""

from ray import tune

SPACE = {
    "algorithm": "fedsimclr",
    "algorithm.lr": tune.loguniform(5e-3, 1e-1),
    "algorithm.temperature": tune.loguniform(0.05, 0.5),
    "algorithm.epochs": tune.randint(1, 6),
}
POINTS = [
    {"algorithm.temperature": 0.1},
    {"algorithm.temperature": 0.5},
]
