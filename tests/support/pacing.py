"""FedAvg with a pause at each site, so that rounds have a known duration on a machine of any speed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from algorithms.fedavg import FedAvg
from raysim import Model, Reply, Site


@dataclass(frozen=True, kw_only=True)
class Pacing(FedAvg):
    pause: float = 0.0

    def client(self, site: Site[Any], model: Model) -> Reply[Model]:
        time.sleep(self.pause)
        return super().client(site, model)
