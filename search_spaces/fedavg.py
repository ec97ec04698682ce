"""FedAvg: learning rate, local epochs, cohort.

First points: one and five local epochs, two of the values compared by McMahan et al. 2017. On the class frequencies of
docs/claims.md, 25 rounds of Adam reach an accuracy of 19 % at a rate of 1e-4, 69 % at 0.01 and 70 % at 0.1; the rates
of the examples are 1e-3 to 1e-2. At a low rate, 0.003, five epochs have 70 % and one has 44; at 0.01 one is enough.
"""

from ray import tune

SPACE = {
    "algorithm": "fedavg",
    "algorithm.lr": tune.loguniform(5e-4, 2e-2),
    "algorithm.epochs": tune.randint(1, 6),
    "cohort.size": tune.choice([0.5, 1.0]),
}
POINTS = [
    {"algorithm.lr": 1e-3, "algorithm.epochs": 1, "cohort.size": 1.0},
    {"algorithm.lr": 1e-3, "algorithm.epochs": 5, "cohort.size": 1.0},
]
