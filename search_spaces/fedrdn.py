"""FedRDN: learning rate, local epochs. The augmentation has no hyper-parameter.

Use task.data.intensity=unit or none: with zscore each image is normalised already, and FedRDN is FedAvg.
"""

from ray import tune

SPACE = {
    "algorithm": "fedrdn",
    "algorithm.lr": tune.loguniform(1e-4, 1e-2),
    "algorithm.epochs": tune.randint(1, 6),
}
POINTS = [
    {"algorithm.lr": 1e-3, "algorithm.epochs": 1},
    {"algorithm.lr": 1e-3, "algorithm.epochs": 5},
]
