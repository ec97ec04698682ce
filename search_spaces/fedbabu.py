"""FedBABU: learning rate, local epochs, epochs of fine-tuning.

First points: one and five epochs of fine-tuning.
"""

from ray import tune

SPACE = {
    "algorithm": "fedbabu",
    "algorithm.lr": tune.loguniform(1e-4, 1e-2),
    "algorithm.epochs": tune.randint(1, 6),
    "algorithm.finetune_epochs": tune.randint(1, 11),
}
POINTS = [
    {"algorithm.lr": 1e-3, "algorithm.epochs": 1, "algorithm.finetune_epochs": 5},
    {"algorithm.lr": 1e-3, "algorithm.epochs": 1, "algorithm.finetune_epochs": 1},
]
