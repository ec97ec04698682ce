"""FedDyn: learning rate, local epochs, weight of the regulariser.

The local optimiser is SGD, so its learning rates differ from those of Adam. First points: alpha 0.01 and 0.1, of the
order of the values in Acar et al. 2021, and 1 for few local steps. On the problem of docs/claims.md (50 local steps)
alpha 0.3 to 10 reach the optimum in 20 rounds, 0.1 nearly, and 0.01 hardly exceeds FedAvg.
"""

from ray import tune

SPACE = {
    "algorithm": "feddyn",
    "algorithm.lr": tune.loguniform(1e-3, 0.3),
    "algorithm.epochs": tune.randint(1, 11),
    "algorithm.alpha": tune.loguniform(1e-2, 3.0),
}
POINTS = [
    {"algorithm.lr": 0.05, "algorithm.epochs": 5, "algorithm.alpha": 0.01},
    {"algorithm.lr": 0.05, "algorithm.epochs": 5, "algorithm.alpha": 0.1},
    {"algorithm.lr": 0.05, "algorithm.epochs": 5, "algorithm.alpha": 1.0},
]
