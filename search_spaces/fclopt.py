"""FCLOpt: rounds between uploads of targets (PTNU), the predicted change that triggers an upload (DP), momentum.

The paper's abstract does not report these values; the first point has the defaults.
"""

from ray import tune

SPACE = {
    "algorithm": "fclopt",
    "algorithm.lr": tune.loguniform(1e-4, 1e-2),
    "algorithm.encoder_momentum": tune.choice([0.9, 0.99, 0.996, 0.999]),
    "algorithm.anchor": tune.choice([2, 5, 10]),
    "algorithm.threshold": tune.choice([None, 0.01, 0.05, 0.2]),
    "algorithm.history": tune.randint(2, 6),
}
POINTS = [
    {"algorithm.encoder_momentum": 0.99, "algorithm.anchor": 5, "algorithm.threshold": None, "algorithm.history": 3},
]
