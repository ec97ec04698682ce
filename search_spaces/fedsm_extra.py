"""FedSM-extra: pull (lambda), rounds of the selector, its learning rate, and the images that it learns from.

First points: the values of FedSM (lambda 0.7, learning rate 3e-3); the paper's own are not known.
"""

from ray import tune

SPACE = {
    "algorithm": "fedsm_extra",
    "algorithm.pull": tune.uniform(0.5, 1.0),
    "algorithm.selector_rounds": tune.uniform(0.3, 0.7),
    "algorithm.selector_lr": tune.loguniform(1e-3, 1e-2),
    "algorithm.label_on": tune.choice(["train", "both"]),
}
POINTS = [
    {
        "algorithm.pull": 0.7,
        "algorithm.selector_rounds": 0.5,
        "algorithm.selector_lr": 3e-3,
        "algorithm.label_on": "train",
    },
]
