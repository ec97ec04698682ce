"""FedDG-GA: learning rate, local epochs, step size of the weights.

First points: step 0.2, the default of the authors' code, and a smaller and a larger one. To compare trials by outside
sites, use --metric outside.
"""

from ray import tune

SPACE = {
    "algorithm": "feddg_ga",
    "algorithm.lr": tune.loguniform(1e-4, 1e-2),
    "algorithm.epochs": tune.randint(1, 6),
    "algorithm.step": tune.loguniform(0.02, 1.0),
}
POINTS = [
    {"algorithm.step": 0.05},
    {"algorithm.step": 0.2},
    {"algorithm.step": 0.5},
]
