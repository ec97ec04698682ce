"""The work on Flower: its Ray simulation, as in its documentation, with one CPU for each client.

python flower_work.py FOLDER [--recreate], with the data written by work.py. `run_simulation` keeps messages in memory.
With --recreate, network and data are created again for each message, as in Flower's examples.
"""

from __future__ import annotations

import sys

import work
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

client, server = ClientApp(), ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """The reply of one site. Network and data stay in the process and need not be created for each message."""
    work.settle()
    if message.content["config"]["recreate"]:
        work.data_of.cache_clear()
        work.resident.cache_clear()
    inputs, labels = work.data_of(message.content["config"]["folder"], context.node_config["partition-id"])
    net = work.resident()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    metrics = MetricRecord({"loss": work.train(net, inputs, labels), "num-examples": len(inputs)})
    return Message(RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=message)


@server.main()
def serve(grid: Grid, context: Context) -> None:
    """All rounds, over all sites, without evaluation."""
    result = FedAvg(fraction_evaluate=0.0, min_available_nodes=work.SITES).start(
        grid=grid,
        initial_arrays=ArrayRecord(work.Network().state_dict()),
        num_rounds=work.ROUNDS,
        train_config=ConfigRecord({"folder": sys.argv[1], "recreate": "--recreate" in sys.argv}),
        evaluate_fn=end_round,
    )
    work.check([metrics["loss"] for metrics in result.train_metrics_clientapp.values()])


def end_round(number: int, arrays: ArrayRecord) -> None:
    """Flower calls this function after each round, and once before the first."""
    if number:
        work.say(number)


def main() -> None:
    # As many CPUs as for the other engines; each client uses one of them (Flower's default is two).
    resources = {"init_args": {"num_cpus": work.ACTORS}, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server, client, num_supernodes=work.SITES, backend_config=resources)


if __name__ == "__main__":
    import flower_work  # so that Ray sends names of this module with each message, not the code of a script

    flower_work.main()
