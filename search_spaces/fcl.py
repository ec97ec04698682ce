"""FCL: temperature, momentum of the encoder, size of the memory bank, denominator, learning rate.

The paper does not report these values; the points are common in contrastive learning. With one labelled volume per site
(docs/claims.md, 80 steps of pre-training) Dice is 36 from a random start, 41 with a learning rate of 1e-3, 45 with
3e-3, 53 with 0.01 and 61 with 0.03. A momentum of 0.9 has 50, 0.99 has 53 and 0.999 has 55; banks of 32, 128 and 512
features have 51 to 53. Temperatures of 0.05 to 0.5 change it by at most 1.
"""

from ray import tune

SPACE = {
    "algorithm": "fcl",
    "algorithm.lr": tune.loguniform(3e-3, 5e-2),
    "algorithm.temperature": tune.loguniform(0.05, 0.5),
    "algorithm.encoder_momentum": tune.choice([0.99, 0.996, 0.999]),
    "algorithm.bank": tune.choice([256, 1024, 4096]),
    "algorithm.exclude_positives": tune.choice([False, True]),
}
POINTS = [
    {"algorithm.temperature": 0.1, "algorithm.encoder_momentum": 0.99, "algorithm.bank": 1024},
    {"algorithm.temperature": 0.07, "algorithm.encoder_momentum": 0.999, "algorithm.bank": 4096},
]
