"""The work on NVFlare: its simulator, with its FedAvg job and the Client API in the process of the client.

python nvflare_work.py FOLDER [--sites N] [--threads N] [--rounds N], with the data written by work.py.
With fewer threads than sites, NVFlare starts a process for each task; with as many, each site keeps a process.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import work
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType
from nvflare.app_opt.pt.job_config.fed_avg import FedAvgJob
from nvflare.job_config.script_runner import ScriptRunner

HERE = Path(__file__).parent


class RoundEnd(FLComponent):
    """Prints the end of a round at the server, and records the mean loss of its sites."""

    def __init__(self, rounds: int) -> None:
        super().__init__()
        self.rounds = rounds
        self.losses: list[float] = []

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type == AppEventType.AFTER_AGGREGATION:
            self.losses.append(fl_ctx.get_prop(AppConstants.AGGREGATION_RESULT).metrics["loss"])
            work.say(len(self.losses), self.rounds)
            if len(self.losses) == self.rounds:
                work.check(self.losses, self.rounds)


def job(folder: str, sites: int, rounds: int) -> FedAvgJob:
    """FedAvg over all sites, weighted by the number of images."""
    result = FedAvgJob(work.Network(), sites, rounds, min_clients=sites, key_metric="loss", key_metric_mode="min")
    result.to_server(RoundEnd(rounds))
    result.to_clients(ScriptRunner(str(HERE / "nvflare_client.py"), script_args=folder))
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=os.path.abspath)
    parser.add_argument(
        "--sites", type=int, default=16, help="number of the 64 sites to use, because NVFlare is slow (default: 16)"
    )
    parser.add_argument("--threads", type=int, default=work.ACTORS)
    parser.add_argument("--rounds", type=int, default=work.ROUNDS)
    args = parser.parse_args()
    os.environ["PYTHONPATH"] = str(HERE)  # client processes import work.py from here
    with tempfile.TemporaryDirectory() as workspace:
        run = job(args.folder, args.sites, args.rounds)
        sys.exit(run.simulator_run(workspace, n_clients=args.sites, threads=args.threads))


if __name__ == "__main__":
    import nvflare_work  # NVFlare finds RoundEnd by the name of its module, and a script has no such name

    nvflare_work.main()
