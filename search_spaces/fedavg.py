"""FedAvg: learning rate, local epochs, cohort.

First points: one and five local epochs with all sites, the two ends of what McMahan et al. 2017 compare for few sites.
"""

from ray import tune

SPACE = {
    "algorithm": "fedavg",
    "algorithm.lr": tune.loguniform(1e-4, 1e-2),
    "algorithm.epochs": tune.randint(1, 6),
}
POINTS = [{"algorithm.lr": 1e-3, "algorithm.epochs": 1}, {"algorithm.lr": 1e-3, "algorithm.epochs": 5}]
