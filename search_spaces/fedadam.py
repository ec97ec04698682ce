"""FedAdam: learning rates of sites and server, adaptivity. To search FedYogi, add algorithm.server_optimizer=yogi.

First points: tau 0.001, as in Reddi et al. 2021, with server learning rates 0.01 and 0.1. On the class frequencies of
docs/claims.md, 25 rounds with tau up to 1e-3 reach an accuracy of 27 % at a server rate of 1e-3, 69 at 0.01, 66 to 70
at 0.1 and 61 to 63 at 0.3. Tau 0.1 needs a server rate of 0.3. FedYogi differs by 0.1 %.
"""

from ray import tune

SPACE = {
    "algorithm": "fedadam",
    "algorithm.lr": tune.loguniform(5e-4, 2e-2),
    "algorithm.server_lr": tune.loguniform(5e-3, 0.2),
    "algorithm.tau": tune.loguniform(1e-5, 1e-2),
    "algorithm.epochs": tune.randint(1, 6),
}
POINTS = [
    {"algorithm.server_lr": 0.01, "algorithm.tau": 1e-3},
    {"algorithm.server_lr": 0.1, "algorithm.tau": 1e-3},
]
