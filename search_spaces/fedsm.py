"""FedSM with SoftPull: pull (lambda), confidence of the selector, its learning rate and steps.

First points: the authors' code has lambda 0.7 (0.8 in its first version) and a confidence of 0.9. The selector needs
more steps than in that code, which has one per round (docs/claims.md). For two sites, 1/2 is the plain mean. More sites
allow lower values, for example --space 'algorithm.pull=uniform(0.2,1)' for five sites.
"""

from ray import tune

SPACE = {
    "algorithm": "fedsm",
    "algorithm.pull": tune.uniform(0.5, 1.0),
    "algorithm.threshold": tune.uniform(0.0, 1.0),
    "algorithm.selector_lr": tune.loguniform(1e-3, 1e-2),
    "algorithm.selector_steps": tune.choice([4, 8, 16]),
}
POINTS = [
    {"algorithm.pull": 0.7, "algorithm.threshold": 0.9, "algorithm.selector_lr": 3e-3, "algorithm.selector_steps": 8},
    {"algorithm.pull": 0.8, "algorithm.threshold": 0.9, "algorithm.selector_lr": 3e-3, "algorithm.selector_steps": 8},
]
