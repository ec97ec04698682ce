"""Two-stage training: the second stage is any other algorithm, starts from the encoder and has its own rounds."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from algorithms.fcl import FCL, ClientState
from algorithms.fedavg import FedAvg
from algorithms.fedbn import FedBN
from algorithms.fedrep import FedRep
from algorithms.fedsimclr import FedSimCLR
from algorithms.localonly import LocalOnly
from raysim import ConfigError, Data, LocalFleet, ResumePoint, SiteError, Task, federate, weights
from raysim.config.merge import parse_pairs
from raysim.config.resolve import resolve, to_mapping
from raysim.core.contracts import SPLITS
from raysim.core.registry import algorithm_class, algorithms, classes_of
from raysim.federation.validation import check_algorithm
from raysim.storage.checkpoint import read, write
from raysim.storage.digest import digest
from raysim.tasks.synthetic import Synthetic, SyntheticData
from raysim.training.encoders import encoder_weights
from raysim.training.self_supervised import Finetuning, Pretraining, SelfSupervised
from raysim.training.test_time_adaptation import OutsideAdaptation
from tests.support.paths import ROOT
from tests.support.slow import slow_except

METHODS = [n for n in algorithms() if issubclass(algorithm_class(n), SelfSupervised)]


@cache
def task() -> Task:
    data = SyntheticData(sites=3, outside=("far",), cases=3, val=0, test=2, unlabelled=4, size=(16, 16))
    network = {"name": "unet", "channels": [2, 4], "strides": [2], "norm": "batch"}
    return Synthetic(data=data, network=network, batch_size=2).build()


def run(algorithm: Any, rounds: int = 4, fleet: Any = None, **options: Any) -> tuple[list[Any], Any]:
    fleet = fleet or LocalFleet(task(), rounds=rounds)
    return list(federate(algorithm, task(), fleet, rounds=rounds, **options)), fleet


def run_digest(rounds: list[Any], fleet: Any) -> str:
    return digest(rounds[-1].state, dict(fleet.client_states))


def test_the_methods_with_pretraining() -> None:
    assert METHODS == ["fcl", "fclopt", "fedrotation", "fedsimclr"]


@pytest.mark.parametrize(
    ("name", "finetune"),
    slow_except(
        [*((n, "fedavg") for n in METHODS), ("fcl", "localonly"), ("fclopt", "fedbn"), ("fcl", "fedrep")],
        [("fcl", "localonly"), ("fedsimclr", "fedavg"), ("fclopt", "fedbn")],
    ),
)
def test_without_pretraining_it_is_bit_identical_to_fine_tuning(name: str, finetune: str) -> None:
    random = run(algorithm_class(name)(pretrain_rounds=0, finetune=finetune), 2)
    alone = run(algorithm_class(finetune)(), 2)
    assert run_digest(*random) == run_digest(*alone)
    assert [r.traffic for r in random[0]] == [r.traffic for r in alone[0]]
    assert [r.scores for r in random[0]] == [r.scores for r in alone[0]]


@pytest.mark.parametrize(
    "finetune", slow_except([n for n in algorithms() if n not in METHODS], ["fedavg", "localonly", "fedsm"])
)
def test_any_algorithm_fine_tunes(finetune: str) -> None:
    rounds, _ = run(FCL(pretrain_rounds=1, finetune=finetune), 3)
    assert rounds[0].scores == () or all(score.split == "train" for score in rounds[0].scores)
    assert {s.site for s in rounds[1].scores if s.split == "test"} >= set(task().inside)
    assert isinstance(rounds[0].state, Pretraining)
    assert isinstance(rounds[1].state, Finetuning)


def test_before_fine_tuning_there_are_no_scores_and_no_model() -> None:
    rounds, _ = run(FedSimCLR(pretrain_rounds=2), 3)
    assert [any(s.split != "train" for s in r.scores) for r in rounds] == [False, False, True]
    assert [r.state.model is None for r in rounds] == [True, True, False]
    assert all(r.loss is not None for r in rounds)


def test_fine_tuning_starts_with_the_network_of_the_seed_except_the_encoder() -> None:
    mine = FCL(pretrain_rounds=2)
    (_, before, _), _ = run(mine, 3)
    finetuning = mine.start_finetuning(before.state, task())
    start, fresh = finetuning.state, weights(task().start(0))
    encoder = set(encoder_weights(task().network()))
    assert 0 < len(encoder) < len(fresh)
    for name in fresh:
        same = np.array_equal(start[name], fresh[name])
        assert same == (name not in encoder) or not fresh.schema.index[name].parameter
    learned = mine.pretrained_weights(before.state.state)
    names = {n.removeprefix("0.encoder.") for n in learned if n.startswith("0.encoder.")}
    assert len(names) == len(encoder)
    assert len(learned) > len(names)  # includes the head, which is not used afterwards
    assert {a.tobytes() for n, a in finetuning.encoder.items()} == {
        a.tobytes() for n, a in learned.items() if n.startswith("0.encoder.")
    }


def test_localonly_also_starts_from_the_encoder() -> None:
    # No step changes the weights, so the client state of LocalOnly after its first round has the first weights.
    mine = FCL(pretrain_rounds=1, finetune=LocalOnly(lr=1e-30, optimizer="sgd", weight_decay=0))
    rounds, fleet = run(mine, 2)
    encoder = rounds[-1].state.encoder
    for site in task().inside:
        kept = fleet.client_state(site)
        assert all(np.allclose(kept[n], encoder[n], atol=1e-20) for n in encoder if encoder.schema.index[n].parameter)
    fresh = weights(task().start(0))
    assert any(not np.array_equal(fresh[n], encoder[n]) for n in encoder)


def test_the_client_state_of_the_first_stage_is_removed_and_the_encoder_is_sent_once() -> None:
    mine = FCL(pretrain_rounds=1)
    fleet, sizes = LocalFleet(task(), rounds=3), []
    for r in federate(mine, task(), fleet, rounds=3):
        kinds = {type(fleet.client_state(site)) for site in task().inside}
        assert kinds == ({ClientState} if r.number == 1 else {type(None)})
        sizes.append(r.traffic.down)
    model, encoder = weights(task().network()).nbytes, encoder_weights(task().network()).nbytes
    assert set(sizes[1].values()) == {model + encoder}
    assert set(sizes[2].values()) == {model}


def test_a_site_that_is_sampled_later_gets_the_encoder_then() -> None:
    mine, seen = FedSimCLR(pretrain_rounds=1, finetune=FedAvg()), set[str]()
    model, encoder = weights(task().network()).nbytes, encoder_weights(task().network()).nbytes
    for r in federate(mine, task(), LocalFleet(task(), rounds=8), rounds=8, cohort=1):
        if r.number == 1:
            continue
        (site,) = r.cohort
        assert r.traffic.down[site] == model + (0 if site in seen else encoder)
        seen.add(site)
    assert len(seen) > 1
    assert set(r.state.sites_with_encoder) == seen


def test_each_stage_has_its_own_schedule() -> None:
    seen: list[tuple[str, int, int]] = []

    class Noting(FedAvg):
        def lr_at(self, site: Any) -> float:
            seen.append(("second", site.round, site.rounds))
            return super().lr_at(site)

    class NotingFirst(FedSimCLR):
        def lr_at(self, site: Any) -> float:
            seen.append(("first", site.round, site.rounds))
            return super().lr_at(site)

    run(NotingFirst(pretrain_rounds=2, finetune=Noting()), 5)
    assert sorted(set(seen)) == [
        *(("first", r, 2) for r in range(2)),
        *(("second", r, 3) for r in range(3)),
    ]


def test_rewind_uses_the_seed_of_the_round_of_the_run() -> None:
    # An algorithm with two calls per round needs the same batches in both; the second stage does not change the seed.
    rounds, _ = run(FedSimCLR(pretrain_rounds=1, finetune="gradient_alignment"), 3)
    assert np.isfinite(rounds[-1].loss)
    site = LocalFleet(task(), rounds=5).executor._site("site-01", _call(3), None)
    site.rewind()
    first = np.random.rand()  # noqa: NPY002 - seeded by `rewind`
    site.stage_view(2, 3).rewind()
    assert np.random.rand() == first  # noqa: NPY002


def _call(round: int) -> Any:
    from raysim.federation.site_executor import CallKey

    return CallKey(0, round, 5, 0)


@pytest.mark.parametrize(
    ("name", "stop"),
    slow_except(
        [*(("fcl", stop) for stop in (1, 2, 3, 4)), ("fclopt", 2), ("fedsimclr", 2), ("fedrotation", 2)],
        [("fcl", 1), ("fcl", 3), ("fclopt", 2)],
    ),
)
def test_resumed_after_any_round_gives_the_same_bits(name: str, stop: int, tmp_path: Path) -> None:
    mine = algorithm_class(name)(pretrain_rounds=3, finetune="fedbn")
    whole = run(mine, 5)
    first = LocalFleet(task(), rounds=5)
    half = [r for _, r in zip(range(stop), federate(mine, task(), first, rounds=5), strict=False)][-1]
    start = read(write(tmp_path, stop, half.state, dict(first.client_states)))
    assert isinstance(start, ResumePoint)
    assert run_digest(*run(mine, 5, start=start)) == run_digest(*whole)


@pytest.mark.parametrize("name", METHODS)
def test_a_linear_probe_is_logged_at_an_interval_and_changes_nothing(name: str) -> None:
    data = SyntheticData(sites=2, outside=(), cases=4, val=2, test=1, unlabelled=2, size=(16, 16))
    network = {"name": "unet", "channels": [2, 4], "strides": [2], "norm": "batch"}
    probed = Synthetic(data=data, network=network, batch_size=2).build()
    ends = []
    for every in (None, 2):
        mine = algorithm_class(name)(pretrain_rounds=3, probe_every=every, steps=1, batch_size=4)
        rounds = list(federate(mine, probed, LocalFleet(probed, rounds=4), rounds=4))
        ends.append(digest(rounds[-1].state))
    assert ends[0] == ends[1]
    values = {(r.number, s.site): s.value for r in rounds for s in r.scores if s.metric == "level_accuracy"}
    assert set(values) == {(number, site) for number in (2, 3) for site in probed.inside}
    assert all(0 <= value <= 100 for value in values.values())


def test_a_linear_probe_needs_levels() -> None:
    with pytest.raises(ConfigError, match="the images are not slices of volumes"):
        FedSimCLR(probe_every=1).init(replace(task(), open=without_levels))


def without_levels(name: str) -> Data:
    """The data of a site whose images are not slices and have no levels in the table."""
    data = task().open(name)
    return replace(
        data, **{split: replace(data[split], levels=None, cases=np.arange(len(data[split]))) for split in SPLITS}
    )


def test_a_fraction_of_the_rounds_is_rounded_down() -> None:
    counts = [FCL().pretraining_rounds(rounds) for rounds in (1, 2, 3, 4, 20)]
    assert counts == [1, 1, 1, 2, 10]
    assert [FCL(pretrain_rounds=share).pretraining_rounds(100) for share in (0.29, 0.57, 0.999)] == [29, 57, 99]
    assert FCL(pretrain_rounds=7).pretraining_rounds(20) == 7


def test_too_many_rounds_are_refused_before_any_site_trains() -> None:
    with pytest.raises(ConfigError, match="pretrain_rounds=4 leaves no round for fine-tuning in a run of rounds=4"):
        run(FCL(pretrain_rounds=4), 4)
    with pytest.raises(ConfigError, match="pretrain_rounds=4 leaves no round for fine-tuning in a run of rounds=4"):
        check_algorithm(FCL(pretrain_rounds=4), task(), 0, 4)


def test_errors_of_fine_tuning_come_early_and_name_its_keys() -> None:
    with pytest.raises(ConfigError, match=r"^algorithm\.finetune\.head=nonsense: "):
        FCL(finetune=FedRep(head="nonsense")).init(task())
    for rounds in (0, 1):
        with pytest.raises(SiteError, match=r"\(algorithm\.finetune\.lr\).*\(algorithm\.finetune\.clip=1\)"):
            run(FCL(pretrain_rounds=rounds, finetune=FedAvg(optimizer="sgd", lr=1e30)), 3)


def test_invalid_combinations_are_refused() -> None:
    with pytest.raises(ConfigError, match="a method with pre-training cannot fine-tune"):
        FCL(finetune=FCL())
    with pytest.raises(ConfigError, match=r"algorithm\.finetune\.outside=tent"):
        FCL(outside=OutsideAdaptation(name="tent")).init(task())
    attention = {"name": "attention_unet", "channels": [2, 4], "strides": [2]}
    other = Synthetic(data=SyntheticData(sites=1, cases=2, size=(16, 16)), network=attention).build()
    with pytest.raises(ConfigError, match="does not know the encoder of AttentionUnet; use one of"):
        FCL().init(other)


def test_a_name_and_nested_keys_give_the_same_configuration() -> None:
    short = resolve(parse_pairs(["algorithm=fcl", "algorithm.finetune=localonly"])).algorithm
    assert short.finetune == LocalOnly()
    keyed = resolve(parse_pairs(["algorithm=fcl", "algorithm.finetune.lr=0.5", "algorithm.lr=0.1"])).algorithm
    assert (keyed.finetune, keyed.lr) == (FedAvg(lr=0.5), 0.1)
    both = resolve(parse_pairs(["algorithm=fcl", "algorithm.finetune={name: fedbn, epochs: 3}"])).algorithm
    assert both.finetune == FedBN(epochs=3)
    assert classes_of(both) == [FCL, FedBN]


def test_the_resolved_configuration_has_every_default_and_reproduces_itself() -> None:
    config = resolve(parse_pairs(["algorithm=fclopt", "algorithm.finetune=fedbn", "algorithm.views.turn=10"]))
    written = yaml.safe_load(yaml.safe_dump(to_mapping(config)))
    assert written["algorithm"]["finetune"]["name"] == "fedbn"
    assert written["algorithm"]["finetune"]["lr"] == 1e-3
    assert resolve(written).algorithm == config.algorithm


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("algorithm.finetune=localonli", "did you mean 'localonly'"),
        ("algorithm.finetune.lrr=1", "unknown key 'algorithm.finetune.lrr' .did you mean 'algorithm.finetune.lr'"),
        ("algorithm.finetune.lr=-1", "algorithm.finetune.lr=-1: expected a number greater than 0"),
        ("algorithm.finetune=3", "algorithm.finetune=3: expected a name, or keys"),
        (
            "algorithm.pretrain_rounds=1.5",
            "algorithm.pretrain_rounds=1.5: expected a whole number, or a number less than 1",
        ),
    ],
)
def test_an_error_in_the_keys_of_fine_tuning_is_refused_early(pair: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(parse_pairs(["algorithm=fcl", pair]))


def test_fine_tuning_with_a_user_algorithm_resumes(tmp_path: Path, monkeypatch: Any) -> None:
    text = Path(algorithm_class("fedbn").__module__.replace(".", "/") + ".py")
    (tmp_path / "my_bn.py").write_text((ROOT / text).read_text())
    monkeypatch.syspath_prepend(tmp_path)
    mine = FCL(pretrain_rounds=1, finetune=algorithm_class("my_bn:FedBN")())
    whole, first = run(mine, 3), LocalFleet(task(), rounds=3)
    half = [r for _, r in zip(range(2), federate(mine, task(), first, rounds=3), strict=False)][-1]
    path = write(tmp_path / "checkpoints", 2, half.state, dict(first.client_states))
    start = read(path, trusted=[cls.__module__ for cls in classes_of(mine)])
    assert run_digest(*run(mine, 3, start=start)) == run_digest(*whole)
    assert replace(mine, finetune="fedavg").finetune == FedAvg()
    assert os.path.exists(path)
