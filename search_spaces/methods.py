"""Choice of the algorithm and of its keys: FedAvg, FedProx, Ditto, FedSM, SCAFFOLD, each with a separate learning rate.

A key such as algorithm.fedsm.pull is active only in trials of fedsm. Use --searcher tpe, which samples only the
active keys of a trial.
"""

from ray import tune

SPACE = {
    "algorithm": tune.choice(["fedavg", "fedprox", "ditto", "fedsm", "scaffold"]),
    "algorithm.fedavg.lr": tune.loguniform(1e-4, 1e-2),
    "algorithm.fedprox.lr": tune.loguniform(1e-4, 1e-2),
    "algorithm.fedprox.mu": tune.loguniform(1e-3, 1.0),
    "algorithm.ditto.lr": tune.loguniform(1e-4, 1e-2),
    "algorithm.ditto.lam": tune.loguniform(1e-2, 10.0),
    "algorithm.fedsm.lr": tune.loguniform(1e-4, 1e-2),
    "algorithm.fedsm.pull": tune.uniform(0.5, 1.0),
    "algorithm.fedsm.threshold": tune.uniform(0.0, 1.0),
    "algorithm.scaffold.lr": tune.loguniform(1e-3, 0.3),
}
POINTS = [
    {"algorithm": "fedavg", "algorithm.fedavg.lr": 1e-3},
    {"algorithm": "fedprox", "algorithm.fedprox.lr": 1e-3, "algorithm.fedprox.mu": 0.01},
    {"algorithm": "ditto", "algorithm.ditto.lr": 1e-3, "algorithm.ditto.lam": 0.1},
    {
        "algorithm": "fedsm",
        "algorithm.fedsm.lr": 1e-3,
        "algorithm.fedsm.pull": 0.7,
        "algorithm.fedsm.threshold": 0.9,
    },
    {"algorithm": "scaffold", "algorithm.scaffold.lr": 0.05},
]
