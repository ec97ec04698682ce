"""The class that Ray Tune runs: one trial after the other in a process that keeps the data open."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ray.tune import Trainable

from raysim.core.formatting import format_bytes
from raysim.distributed.ray_compat import end_at_sigterm
from raysim.federation.plan import model_bytes
from raysim.search.spec import SearchSpec, unfit_node
from raysim.search.trial_cache import TrialCache
from raysim.search.trial_runner import TrialRounds, unfit_node_result
from raysim.search.tune_compat import silence_tune_loggers
from raysim.search.tune_searcher import TRIAL_NUMBER


def prepare_process(spec: SearchSpec) -> None:
    """Make relative paths and modules of the user the same in this process as in the command.

    A SIGTERM ends the process; its trial continues from the last checkpoint.
    """
    end_at_sigterm()
    silence_tune_loggers()
    if os.path.isdir(spec.cwd):
        os.chdir(spec.cwd)
        sys.path.insert(0, spec.cwd)


def too_small_share(share: float, gpu_bytes: int, model_bytes: int) -> str:
    """The reason why a trial cannot train on this share of a GPU; empty if it can, as far as the model shows.

    Training needs the weights, their gradients and at least one copy more (the global model). The memory of the
    activations is known only when a batch is trained (`raysim doctor`).
    """
    needed, has = 3 * model_bytes, min(share, 1.0) * gpu_bytes
    if has >= needed:
        return ""
    return unfit_node(
        f"a trial has {share:g} of a GPU of {format_bytes(gpu_bytes)}, which is {format_bytes(has)}, but its network "
        f"needs at least {format_bytes(needed)}; set a larger resources.gpus_per_client"
    )


class FederationTrainable(Trainable):
    """The class that Ray Tune runs: a step is a round. A process runs one trial after the other."""

    def setup(self, config: dict[str, Any], spec: SearchSpec | None = None) -> None:
        """Start the first trial of this process."""
        assert spec is not None
        prepare_process(spec)
        self.spec, self.cannot_run = spec, spec.node_incompatibility()
        if self.cannot_run:
            return
        self.cache = TrialCache(spec)
        group = self.trial_resources
        share = group.bundles[0].get("GPU", 0) if group is not None else 0
        if share and spec.backend == "local" and torch.cuda.is_available():  # client actors limit their own memory
            torch.cuda.set_per_process_memory_fraction(min(share, 1.0))
            assert spec.task is not None
            memory = torch.cuda.get_device_properties(0).total_memory
            self.cannot_run = too_small_share(share, memory, model_bytes(spec.task))
        if not self.cannot_run:
            self._start(config)

    def _start(self, config: Mapping[str, Any]) -> None:
        values = {key: value for key, value in config.items() if key != TRIAL_NUMBER}
        # The number is read from the name, because PBT copies the configuration of another trial with its number.
        self.rounds = TrialRounds(self.spec, int(self.trial_name), values, self.cache)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start another trial in this process, with the open data."""
        if not self.cannot_run:
            self.rounds.close()
            self._start(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """One round."""
        return unfit_node_result(self.cannot_run) if self.cannot_run else self.rounds.step()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Called for a scheduler that pauses trials or transfers their states."""
        if not self.cannot_run:
            self.rounds.export_state(Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Continue from a checkpoint, of this trial or another one."""
        if not self.cannot_run:
            self.rounds.import_state(Path(checkpoint))

    def cleanup(self) -> None:
        """End the trial and its client actors."""
        if not self.cannot_run:
            self.rounds.close()
            self.cache.session_actors.close()
