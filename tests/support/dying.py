"""FedAvg whose process is killed once, at a site, in the second round."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from algorithms.fedavg import FedAvg
from raysim import Model, Reply, Site


@dataclass(frozen=True, kw_only=True)
class Dying(FedAvg):
    marker: str = ""
    by: str = "SIGKILL"

    def client(self, site: Site[Any], model: Model) -> Reply[Model]:
        if site.round == 1 and self.marker and not Path(self.marker).exists():
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.Signals[self.by])
        return super().client(site, model)
