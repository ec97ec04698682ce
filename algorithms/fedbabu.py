"""FedBABU: the sites train all layers except the head, which keeps its first weights; each site fine-tunes the result.

Oh, Kim, Yun, "FedBABU: Towards Enhanced Representation for Federated Image Classification", ICLR 2022, Algorithm 1.
https://arxiv.org/abs/2106.06042

    w_k = (phi, h) after local training of phi; h has its first weights        phi <- sum_k (n_k / n) phi_k
    evaluation at site k: (phi, h) after finetune_epochs of local training of all layers

Our reading: the fine-tuned model is computed again for each evaluation and not kept, so it does not change the
federation. Fine-tuning uses `lr` without the schedule. The head is the network's last layer by default; its parameters
are not trained and not sent, its buffers are those of the other layers. Outside sites have no labels to fine-tune on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

from annotated_types import Ge

from raysim import Fleet, LocalTraining, Metrics, Model, Predictor, Reply, Site, Task, mean, weights
from raysim.training import head_layer, within

GROUP = "personal"


@dataclass(frozen=True)
class ServerState:
    """The shared weights phi, and the head h."""

    shared: Model
    head: Model

    @property
    def model(self) -> Model:
        """The global model without fine-tuning."""
        return self.shared | self.head


@dataclass(frozen=True, kw_only=True)
class FedBABU(LocalTraining):
    head: Annotated[
        str | None, "name, or prefix of the names, of the layers that are not trained; default: the last layer"
    ] = None
    finetune_epochs: Annotated[int, Ge(0), "epochs of fine-tuning before an evaluation; 0: the global model"] = 5

    def init(self, task: Task) -> ServerState:
        net = task.network()
        model, _ = self.make_update(net)
        layer = head_layer(net, task.shape, self.head)
        head = {name for name in model.parameters if within(name, layer)}
        return ServerState(model.only(model.keys() - head), model.only(head))

    # at each site
    def client(self, site: Site[Any], shared: Model) -> Reply[Model]:
        net = self.load_global(site, weights(site.load()) | shared)  # the site computes the head from the run's seed
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name in shared)
        loss = self.fit(net, site)
        update, client_state = self.make_update(net)
        update = update.only(shared)
        return Reply(update, weight=len(site.data.train), metrics={"loss": loss}, client_state=client_state)

    # at the server
    def round(self, fleet: Fleet, state: ServerState) -> tuple[ServerState, Metrics]:
        return ServerState(mean(fleet.map(self.client, state.shared)), state.head), {}

    def predictor(self, site: Site[Any], state: ServerState) -> Predictor:
        if site.name in site.task.outside or not self.finetune_epochs:
            return self.predict_module(site, state.model)
        net = self.load_site_buffers(site.load(), site, state.model)
        replace(self, schedule="constant").fit(net, site, epochs=self.finetune_epochs)
        return site.predict_module(weights(net))
