"""FedRDN: learning rate, local epochs. The augmentation has no hyper-parameter.

Use task.data.intensity=unit or none: with zscore each image is normalised already, and FedRDN is FedAvg. With images of
two scanners (docs/claims.md), Dice is 70 at a rate of 1e-3, 91 at 3e-3 and 93 at 0.01 with five epochs, and 62 at 0.01
with one: the augmentation needs many steps.
"""

from ray import tune

SPACE = {
    "algorithm": "fedrdn",
    "algorithm.lr": tune.loguniform(1e-3, 2e-2),
    "algorithm.epochs": tune.randint(1, 8),
}
POINTS = [
    {"algorithm.lr": 1e-3, "algorithm.epochs": 1},
    {"algorithm.lr": 1e-3, "algorithm.epochs": 5},
]
