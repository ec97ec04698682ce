"""The contracts between algorithms, tasks and the engine: Algorithm, Fleet, Site, Reply, Task, Split and Data.

Imports torch only where it is used, so that tables and configurations are checked without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np

from raysim.core.seeding import seed_all, seeded
from raysim.core.targets import Target

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from raysim.core.model import Model
    from raysim.core.whole_images import WholeImages

M = TypeVar("M")
P = TypeVar("P")
P_co = TypeVar("P_co", covariant=True)
Array = np.ndarray[Any, np.dtype[Any]]
Metrics = dict[str, float]
CaseValues = Mapping[str, Array]  # by metric, the values (cases,)
Predictor = Callable[["Tensor"], "Tensor"]  # inputs (B, C, *space) or (B, F) -> logits (B, K, *space) or (B, K)
Batch = tuple["Tensor", "Tensor"]  # inputs (B, C, *space) or (B, F), labels (B, 1, *space) or (B, 1)
PerSite = Mapping[str, Any] | None  # a further argument of a client function, by site
Augment = Callable[["Tensor", "Tensor", np.random.RandomState], Batch]
Sampling = Literal["uniform", "balanced", "sqrt"]
SPLITS = ("train", "val", "test", "unlabelled")
EVALUATED_SPLITS = ("val", "test")


class _Unchanged:
    """The type of UNCHANGED, the client state of a reply that does not change the stored client state."""

    def __reduce__(self) -> str:
        return "UNCHANGED"

    def __repr__(self) -> str:
        return "UNCHANGED"


UNCHANGED: Any = _Unchanged()


@dataclass(frozen=True, eq=False)  # hashed by identity: copies on a device are cached by split
class Split:
    """Preprocessed examples of one site, all of the same shape; the arrays are read-only and may be memory-mapped.

    inputs: (N, C, *space) images, or patches of images, or (N, F) rows of a table.
    labels: class indices (N, 1, *space) of voxels, or labels (N, L) of examples as in Target; None without labels.
    cases: (N,) case number of each example; slices of one volume have the same number and are evaluated together.
    spacing: (N, D) in mm along each spatial axis; for slices also the distance between them.
    levels: (N,) the part of the body that an image shows, from 1; None if the table does not have it.
    images, sources: for patches, the whole images, and (N,) the image of each stored patch; evaluation uses images.
    """

    inputs: Array
    labels: Array | None
    cases: Array
    spacing: Array
    levels: Array | None = None
    images: WholeImages | None = None
    sources: Array | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, rows: Array) -> Split:
        """The examples with the indices `rows`."""
        parts: Any = {name: array[rows] for name, array in vars(self).items() if isinstance(array, np.ndarray)}
        return replace(self, **parts)


@dataclass(frozen=True)
class Data:
    """All examples of one site; a split that the site lacks is empty, not None."""

    train: Split
    val: Split
    test: Split
    unlabelled: Split

    def __getitem__(self, split: str) -> Split:
        return {"train": self.train, "val": self.val, "test": self.test, "unlabelled": self.unlabelled}[split]


ProgressCallback = Callable[[int, int], None]  # cases done, cases in total


@dataclass(frozen=True)
class PredictionSet:
    """Several predictors of one method at a site.

    `main` is the predictor of the method. Each of `others` is also evaluated, as `metric@name`. `notes` returns further
    metrics of a split, with names that differ from the task's metrics, such as the fraction of examples per model.
    """

    main: Predictor
    others: Mapping[str, Predictor] = field(default_factory=dict)
    notes: Callable[[Split], Metrics] | None = None


class TaskConfig(Protocol):
    """A frozen dataclass of the keys under `task.`, which builds the task.

    It may also have a method `check()`, which raises ConfigError for an error in the keys or the table, without torch.
    """

    def build(self, progress: ProgressCallback | None = None) -> Task:
        """The task with prepared data; `progress` is called per case. Raises ConfigError for wrong keys or data."""


class Scorer(Protocol):
    """Computes each metric over the cases of a split; metrics that are undefined for the split are left out."""

    @property
    def better(self) -> Mapping[str, Literal["higher", "lower"]]:
        """Every metric that it may return, the main one first, and the direction in which it improves."""

    def __call__(self, predict: Predictor, split: Split, device: torch.device) -> Metrics: ...


@runtime_checkable
class CaseScorer(Scorer, Protocol):
    """A scorer that also returns the values of each case, from the same predictions."""

    def score_cases(self, predict: Predictor, split: Split, device: torch.device) -> tuple[Metrics, CaseValues]:
        """The result of the scorer, and the values of each case in the order of `np.unique(split.cases)`.

        A value is NaN where the case does not define the metric. A metric of the split is the mean of its values, or,
        if it has none, a function of others.
        """


@dataclass(frozen=True)
class CaseName:
    """The image and the patient of a case, as in the table; None if the table has none."""

    image: str | None = None
    patient: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """The sites, the network, the loss and the metrics. It contains no data: `open` loads the data of a site.

    inside, outside: names of the sites, sorted.
    sizes: number of examples by site and split, for all inside and outside sites.
    shape: shape of an example, (C, *space) or (F,).
    classes: number of logits of an example.
    sampling: how local training samples examples: each once per epoch, or with probabilities by class.
    summary: a line about the classes that is shown at the start of a run; empty for no line.
    case_names: the cases of a site (first argument) in a split (second), by case number; None if they have no names.
    class_values: the value of each class in masks or labels, or the column of each output; empty if they are unknown.
    computed: values of keys under `task.data` that were computed from the data of inside sites.
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
    sampling: Sampling = "uniform"
    summary: str = ""
    case_names: Callable[[str, str], Sequence[CaseName]] | None = None
    class_values: Mapping[str, int | str] = field(default_factory=dict)
    computed: Mapping[str, Any] = field(default_factory=dict)
    target: Target = Target.CLASS

    def start(self, seed: int) -> nn.Module:
        """A new network with the initial weights, which are the same for every method in a run with this seed."""
        with seeded(seed, "init"):
            return self.network()


@dataclass(frozen=True)
class Site(Generic[M]):
    """The argument of a client function: one hospital, during one call.

    client_state: the client state that the site's last reply stored; None in the first call.
    round, rounds: zero-based round and number of rounds, of the run or of a stage that starts in round `stage_start`.
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
    stage_start: int = 0

    def load(self, model: Model | None = None) -> nn.Module:
        """A new network with the weights of `model`, on the site's device, in training mode.

        Buffers that the model lacks are as in a new network. Without a model, the network has the initial weights of
        the run's seed, which are the same at every site.
        """
        from raysim.core.model import load
        from raysim.core.module_copy import copy_module

        net = copy_module(self.template)
        if model is not None:
            load(net, model)
        return net

    def rewind(self) -> None:
        """Reset the random generators to their state in the site's first call of the round, so that batches repeat."""
        seed_all(self.seed, self.stage_start + self.round, 0, self.name)

    def stage_view(self, start: int, rounds: int) -> Site[M]:
        """The site with the round numbers of a stage that starts in round `start` and has `rounds` rounds."""
        return replace(self, round=self.round - start, rounds=rounds, stage_start=self.stage_start + start)

    def predict_module(self, model: Model) -> nn.Module:
        """Like `load`, in evaluation mode; BatchNorm layers without running statistics in the model use the batch's."""
        from raysim.core.model import lacks_statistics

        net = self.load(model).eval()
        for name, layer in net.named_modules():
            if lacks_statistics(model, name, layer):
                layer.train()
        return net


@dataclass(frozen=True)
class Reply(Generic[P]):
    """The result of a client function: a payload for the server, and a client state that stays at the site."""

    payload: P  # sent to the server; its bytes are counted
    weight: float = 1.0  # usually the number of training examples
    metrics: Metrics = field(default_factory=dict)
    client_state: Any = UNCHANGED  # stored at the site for its next call; never sent to the server


class Exchange(Protocol[P_co]):
    """Payloads of sites for other sites, sent inside `broadcast`. Only client functions can read the payloads."""

    sites: Sequence[str]
    metrics: Mapping[str, Metrics]

    def __getitem__(self, site: str) -> P_co: ...


class Fleet(Protocol):
    """Runs client functions at sites. Replies are in site order, regardless of the order in which calls finish."""

    task: Task
    rounds: int  # declared for the run
    sites: Sequence[str]

    def at(self, sites: Sequence[str]) -> Fleet:
        """The same fleet with only these sites."""

    def map(
        self, client: Callable[..., Reply[P]], broadcast: Any = None, per_site: PerSite = None
    ) -> Mapping[str, Reply[P]]:
        """The replies of `client(site, broadcast)`, or of `client(site, broadcast, per_site[name])`, by site."""

    def exchange(self, client: Callable[..., Reply[P]], broadcast: Any = None, per_site: PerSite = None) -> Exchange[P]:
        """Like `map`, but the payloads are sent from site to site and never through the server."""


class State(Protocol):
    """A server state. `model` is the plain global model, None if the method has none."""

    @property
    def model(self) -> Model | None: ...


S = TypeVar("S", bound=State)


class Algorithm(Protocol[S]):
    """A frozen dataclass of hyper-parameters with three pure methods, which the engine calls."""

    def init(self, task: Task) -> S:
        """The first server state."""

    def round(self, fleet: Fleet, state: S) -> tuple[S, Metrics]:
        """The next server state, and the server's metrics; it may call the fleet any number of times."""

    def predictor(self, site: Site[Any], state: S) -> Predictor | PredictionSet | None:
        """The predictor of the method at `site`; None if the method has none for this site."""
