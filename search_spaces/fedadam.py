"""FedAdam, FedYogi: learning rates of sites and server, adaptivity.

First points: tau 0.001, as in Reddi et al. 2021, with server learning rates 0.01 and 0.1.
"""

from ray import tune

SPACE = {
    "algorithm": "fedadam",
    "algorithm.lr": tune.loguniform(1e-4, 1e-2),
    "algorithm.server_lr": tune.loguniform(1e-3, 0.3),
    "algorithm.tau": tune.loguniform(1e-5, 1e-1),
    "algorithm.server_optimizer": tune.choice(["adam", "yogi"]),
    "algorithm.epochs": tune.randint(1, 6),
}
POINTS = [
    {"algorithm.server_lr": 0.01, "algorithm.tau": 1e-3, "algorithm.server_optimizer": "adam"},
    {"algorithm.server_lr": 0.1, "algorithm.tau": 1e-3, "algorithm.server_optimizer": "adam"},
]
