"""The words of raysim as types: what an algorithm, a site and the engine say to each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from raysim.core.model import Model, load
from raysim.core.module_copy import copy_module
from raysim.core.seeding import seed_all, seeded

M = TypeVar("M")
P = TypeVar("P")
P_co = TypeVar("P_co", covariant=True)
Array = np.ndarray[Any, np.dtype[Any]]
Metrics = dict[str, float]
Predictor = Callable[[Tensor], Tensor]  # inputs (B, C, *space) or (B, F) -> logits (B, K, *space) or (B, K)
Batch = tuple[Tensor, Tensor]  # inputs (B, C, *space) or (B, F), labels (B, 1, *space) or (B, 1)
PerSite = Mapping[str, Any] | None  # what each site alone is sent
Augment = Callable[[Tensor, Tensor, np.random.RandomState], Batch]
SPLITS = ("train", "val", "test", "unlabelled")
EVALUATED_SPLITS = ("val", "test")


class _Unchanged:
    """The one value that says: leave my memory as it is."""

    def __reduce__(self) -> str:
        return "UNCHANGED"

    def __repr__(self) -> str:
        return "UNCHANGED"


UNCHANGED: Any = _Unchanged()


@dataclass(frozen=True, eq=False)  # one split is one object: what is kept for it on a device hangs on it
class Split:
    """Examples of one site, preprocessed, all of one shape; arrays may be memory-mapped, never written to.

    inputs (N, C, *space), of tables (N, F); labels of classes, (N, 1, *space) of voxels, (N, 1) of examples, or None;
    cases (N,) number of the case an example is of: slices of one volume share it and are judged together; spacing
    (N, D) in mm along each axis of space, of slices the distance between them too; levels (N,) the part of the body
    that a picture shows, from 1 on, None where the table does not say.
    """

    inputs: Array
    labels: Array | None
    cases: Array
    spacing: Array
    levels: Array | None = None

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class Data:
    """All the examples of one site; a split it does not have is empty, not None."""

    train: Split
    val: Split
    test: Split
    unlabelled: Split

    def __getitem__(self, split: str) -> Split:
        return {"train": self.train, "val": self.val, "test": self.test, "unlabelled": self.unlabelled}[split]


ProgressCallback = Callable[[int, int], None]  # cases done, of how many


@dataclass(frozen=True)
class PredictionSet:
    """What a method says at a site, where that is more than one prediction.

    `main` is the method's own answer; each of `others` is judged beside it, as `metric@name`. `notes` says more of its
    answers to the examples of a split, such as how many went to which model; it reads no metric's name but its own.
    """

    main: Predictor
    others: Mapping[str, Predictor] = field(default_factory=dict)
    notes: Callable[[Split], Metrics] | None = None


class TaskConfig(Protocol):
    """What the keys under `task.` describe: a frozen dataclass that can make the task."""

    def build(self, progress: ProgressCallback | None = None) -> Task:
        """The task, its data prepared; `progress` hears of each case. Raises ConfigError for whatever is wrong."""
        ...


class Scorer(Protocol):
    """Judges predictions: each metric over the cases of a split; a metric that cannot be judged is left out."""

    @property
    def better(self) -> Mapping[str, Literal["higher", "lower"]]:
        """Every metric it may return, the main one first, and which way it improves."""
        ...

    def __call__(self, predict: Predictor, split: Split, device: torch.device) -> Metrics: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """What is learned and how it is judged; the same at every site. Small: the data are opened at the site.

    `sizes` says how many examples each site has in each split, for the sites in `inside` and in `outside`, which are
    sorted by name. `shape` is that of an example, (C, *space) or (F,), and `classes` how many logits it gets.
    """

    name: str
    inside: tuple[str, ...]
    outside: tuple[str, ...]
    sizes: Mapping[str, Mapping[str, int]]
    shape: tuple[int, ...]
    classes: int
    open: Callable[[str], Data]
    network: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    score: Scorer
    batch_size: int
    augment: Augment | None = None

    def start(self, seed: int) -> nn.Module:
        """A new network with the weights that every method starts from in a run of this seed."""
        with seeded(seed, "init"):
            return self.network()


@dataclass(frozen=True)
class Site(Generic[M]):
    """All that a client function may touch: one hospital, during one call.

    `client_state` is what the site last kept, None the first time. `round` counts from 0 to `rounds` - 1, as declared for
    the run, or for a part of it that comes `before` rounds later.
    """

    name: str
    task: Task
    data: Data
    client_state: M | None
    device: torch.device
    seed: int
    round: int
    rounds: int
    template: nn.Module = field(repr=False)
    before: int = 0

    def load(self, model: Model | None = None) -> nn.Module:
        """A live network with these weights, on the site's device, in training mode, its own copy.

        Buffers that the model leaves out are as in a new network. Without a model: the weights that the run's
        seed gives to a new network, the same at every site.
        """
        net = copy_module(self.template)
        if model is not None:
            load(net, model)
        return net

    def rewind(self) -> None:
        """Random numbers from here on are this site's of the round's first call: it sees the same batches again."""
        seed_all(self.seed, self.before + self.round, 0, self.name)

    def stage_view(self, start: int, rounds: int) -> Site[M]:
        """The site as a part of the run sees it that begins in round `start` and has so many rounds of its own."""
        return replace(self, round=self.round - start, rounds=rounds, before=self.before + start)

    def predict_module(self, model: Model) -> nn.Module:
        """`load` in evaluation mode; layers whose running statistics the model lacks use those of the batch."""
        net = self.load(model).eval()
        for name, layer in net.named_modules():
            if isinstance(layer, _BatchNorm) and f"{name}.running_mean" not in model:
                layer.train()
        return net


@dataclass(frozen=True)
class Reply(Generic[P]):
    """What a client function says, and what it keeps to itself."""

    payload: P  # travels to the server; its bytes are counted
    weight: float = 1.0  # usually the number of training examples
    metrics: Metrics = field(default_factory=dict)
    client_state: Any = UNCHANGED  # stays at the site and comes back next time; the server never sees it


class Exchange(Protocol[P_co]):
    """What sites have for one another. It travels inside `broadcast`; its payloads can be read at sites only."""

    sites: Sequence[str]
    metrics: Mapping[str, Metrics]

    def __getitem__(self, site: str) -> P_co: ...


class Fleet(Protocol):
    """Runs client functions at sites. Replies come in site order, whatever order they finished in."""

    task: Task
    rounds: int  # declared for the run
    sites: Sequence[str]

    def at(self, sites: Sequence[str]) -> Fleet:
        """The same fleet with only these sites."""
        ...

    def map(
        self, client: Callable[..., Reply[P]], broadcast: Any = None, per_site: PerSite = None
    ) -> Mapping[str, Reply[P]]:
        """`client(site, shared)` at every site, or `client(site, shared, own[site])` where `per_site` is given."""
        ...

    def exchange(self, client: Callable[..., Reply[P]], broadcast: Any = None, per_site: PerSite = None) -> Exchange[P]:
        """As `map`, but the payloads go from site to site and never through the server."""
        ...


class State(Protocol):
    """What the server knows. `model` is the plain global model, None where the method has none."""

    @property
    def model(self) -> Model | None: ...


S = TypeVar("S", bound=State)


class Algorithm(Protocol[S]):
    """A frozen dataclass of hyper-parameters with three pure methods: it drives, the engine carries."""

    def init(self, task: Task) -> S:
        """The server's first state."""
        ...

    def round(self, fleet: Fleet, state: S) -> tuple[S, Metrics]:
        """The next state and the server's own metrics; may call the fleet as often as it likes."""
        ...

    def predictor(self, site: Site[Any], state: S) -> Predictor | PredictionSet | None:
        """What the method answers with at `site`; None where it has no answer for this site."""
        ...
