"""FCL: temperature, momentum of the encoder, size of the memory bank, learning rate.

The paper does not report these values; the points are common in contrastive learning.
"""

from ray import tune

SPACE = {
    "algorithm": "fcl",
    "algorithm.lr": tune.loguniform(1e-4, 1e-2),
    "algorithm.temperature": tune.loguniform(0.05, 0.5),
    "algorithm.encoder_momentum": tune.choice([0.9, 0.99, 0.996, 0.999]),
    "algorithm.bank": tune.choice([256, 1024, 4096]),
}
POINTS = [
    {"algorithm.temperature": 0.1, "algorithm.encoder_momentum": 0.99, "algorithm.bank": 1024},
    {"algorithm.temperature": 0.07, "algorithm.encoder_momentum": 0.999, "algorithm.bank": 4096},
]
