"""FCLOpt: rounds between uploads of targets (PTNU), the predicted change that triggers an upload (DP).

The paper's abstract does not report these values; the first point has the defaults. With one labelled volume per site
(docs/claims.md, 80 steps of pre-training, PTNU) Dice is 36 from a random start, 40 with a learning rate of 1e-3, 46
with 0.01, 52 with 0.03 and 60 with 0.06. An anchor in every second round has 48 and in every eighth 45, for 6 % fewer
bytes. The momentum of the encoder, 0.9 to 0.999, changes Dice by 1, so it is no key here.
"""

from ray import tune

SPACE = {
    "algorithm": "fclopt",
    "algorithm.lr": tune.loguniform(3e-3, 1e-1),
    "algorithm.anchor": tune.choice([2, 5, 10]),
    "algorithm.threshold": tune.choice([None, 0.01, 0.05, 0.2]),
    "algorithm.history": tune.randint(2, 6),
}
POINTS = [
    {"algorithm.anchor": 5, "algorithm.threshold": None, "algorithm.history": 3},
]
