"""The class that Ray Tune runs for a trial in a batch: it passes all requests to a `TrialBatch`.

Does not import torch: each trial of a batch has such a process, so the import would be repeated for each trial.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.tune import Trainable

from raysim.distributed.ray_compat import end_at_sigterm
from raysim.search.tune_compat import silence_tune_loggers

TRIAL_NUMBER = "trial"  # the key of Tune's configuration that holds the trial's number


class BatchedTrainable(Trainable):
    """A trial that runs in a batch; a step is a round."""

    def setup(self, config: dict[str, Any], batches: Sequence[Any] = ()) -> None:
        """Join a batch."""
        end_at_sigterm()
        silence_tune_loggers()
        self.batches = batches
        self._join(config)

    def _join(self, config: Mapping[str, Any]) -> None:
        self.number = int(self.trial_name)
        values = {key: value for key, value in config.items() if key != TRIAL_NUMBER}
        first = self.number % len(self.batches)
        for batch in (*self.batches[first:], *self.batches[:first]):
            self.batch = batch
            if ray.get(batch.join.remote(self.number, values)):
                return
        raise RuntimeError(f"no batch has room for trial {self.number}")

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Run another trial in this process."""
        self.cleanup()
        self._join(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """One round."""
        row: dict[str, Any] = ray.get(self.batch.step.remote(self.number))
        return row

    def cleanup(self) -> None:
        """Leave the batch."""
        ray.get(self.batch.leave.remote(self.number))
