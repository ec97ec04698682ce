"""FedSM-extra: pull (lambda), rounds of the selector, its learning rate, and the images that it learns from.

First point: the values of FedSM (lambda 0.7, learning rate 3e-3); the paper's own are not known. On the discs of
docs/claims.md, four or seven steps of the selector per round, on 8 random images or on all, differ by at most 1.6 in
Dice, so the steps are no key here. The ranges of FedSM's selector_lr and pull hold for the same models and selector.
"""

from ray import tune

SPACE = {
    "algorithm": "fedsm_extra",
    "algorithm.pull": tune.uniform(0.5, 1.0),
    "algorithm.selector_rounds": tune.uniform(0.3, 0.7),
    "algorithm.selector_lr": tune.loguniform(2e-3, 1e-2),
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
