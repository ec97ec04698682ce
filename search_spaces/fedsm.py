"""FedSM with SoftPull: pull (lambda), confidence of the selector, its learning rate and steps.

First points: the authors' code has lambda 0.7 (0.8 in its first version) and a confidence of 0.9. For two sites, 1/2 is
the plain mean. More sites allow lower values, for example --space 'algorithm.pull=uniform(0.2,1)' for five sites. On
the discs of docs/claims.md, with pairs of equal sites, pull 0.5 to 0.9 changes Dice by at most 1. Routed predictions
inside have 92 at thresholds of 0 and 0.3 and 80 at 0.6, which is above the possible confidence of 1/2; 80 at a
selector_lr of 1e-3, 92 at 3e-3 and 85 at 0.01; 73 with one step per round, 92 with seven and 89 with 16.
"""

from ray import tune

SPACE = {
    "algorithm": "fedsm",
    "algorithm.pull": tune.uniform(0.5, 1.0),
    "algorithm.threshold": tune.uniform(0.0, 0.9),
    "algorithm.selector_lr": tune.loguniform(2e-3, 1e-2),
    "algorithm.selector_steps": tune.choice([4, 8, 16]),
}
POINTS = [
    {"algorithm.pull": 0.7, "algorithm.threshold": 0.9, "algorithm.selector_lr": 3e-3, "algorithm.selector_steps": 8},
    {"algorithm.pull": 0.7, "algorithm.threshold": 0.3, "algorithm.selector_lr": 3e-3, "algorithm.selector_steps": 8},
]
