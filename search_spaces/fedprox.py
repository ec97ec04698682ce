"""FedProx: learning rate, local epochs, weight of the proximal term.

First points: mu 0.01, 0.1 and 1, values compared by Li et al. 2020. On the problem of docs/claims.md, with SGD at rate
0.05, mu 0.01 has no effect, 1 has half of the effect and 10 all of it. With SGD mu must be below 1 / rate.
"""

from ray import tune

SPACE = {
    "algorithm": "fedprox",
    "algorithm.lr": tune.loguniform(1e-4, 1e-2),
    "algorithm.epochs": tune.randint(1, 6),
    "algorithm.mu": tune.loguniform(1e-2, 10.0),
}
POINTS = [
    {"algorithm.mu": 0.01},
    {"algorithm.mu": 0.1},
    {"algorithm.mu": 1.0},
]
