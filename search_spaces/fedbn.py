"""FedBN: learning rate, local epochs, the model at outside sites.

FedBN needs normalisation layers with parameters, such as task.network.norm=batch; otherwise it equals FedAvg. To search
SiloBN, add algorithm.local=statistics.
"""

from ray import tune

SPACE = {
    "algorithm": "fedbn",
    "algorithm.lr": tune.loguniform(1e-4, 1e-2),
    "algorithm.epochs": tune.randint(1, 6),
    "algorithm.outside": tune.choice(["global", "batch_stats"]),
}
POINTS = [
    {"algorithm.lr": 1e-3, "algorithm.epochs": 1, "algorithm.outside": "global"},
]
