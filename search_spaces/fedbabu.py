"""FedBABU: learning rate, local epochs, epochs of fine-tuning.

First points: five and ten epochs of fine-tuning. On the shared directions of docs/claims.md the accuracy is 61 % with
one epoch of fine-tuning, 67 % with three and 75 % with ten; FedAvg has 58 %.
"""

from ray import tune

SPACE = {
    "algorithm": "fedbabu",
    "algorithm.lr": tune.loguniform(5e-4, 3e-2),
    "algorithm.epochs": tune.randint(1, 6),
    "algorithm.finetune_epochs": tune.randint(3, 16),
}
POINTS = [
    {"algorithm.lr": 1e-3, "algorithm.epochs": 1, "algorithm.finetune_epochs": 5},
    {"algorithm.lr": 1e-3, "algorithm.epochs": 1, "algorithm.finetune_epochs": 10},
]
