"""A trial in one process: its rounds, its checkpoints, and the state that it takes over from another trial."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace

import pytest
import torch
from safetensors.torch import load_file

from algorithms.fedavg import FedAvg
from raysim.core.errors import RunError
from raysim.core.model import weights
from raysim.federation.exported_network import exported_network
from raysim.federation.fleet import LocalFleet
from raysim.federation.round_loop import federate
from raysim.federation.trained_run import open_run
from raysim.search.results import SearchResults
from raysim.search.spec import FederationVariant
from raysim.search.trial_cache import TrialCache
from raysim.search.trial_runner import TrialRounds
from raysim.search.trial_store import TrialRecord, lineage, load_records, logged_rounds, save_record
from raysim.storage import checkpoint
from raysim.storage.digest import digest
from raysim.storage.model_files import write_model
from tests.support.searches import searched


def test_a_trial_without_a_checkpoint_starts_again_with_an_empty_log(tmp_path):
    search = searched(tmp_path, "rounds=4", "checkpoint_every=3")
    lost = TrialRounds(search, 1, {"algorithm.lr": 0.01}, TrialCache(search))
    assert [lost.step()["round"] for _ in range(2)] == [1, 2]
    again = TrialRounds(search, 1, {"algorithm.lr": 0.01}, TrialCache(search))
    assert [again.step()["round"] for _ in range(4)] == [1, 2, 3, 4]
    logged = (tmp_path / "trials" / "0001" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)[0]["round"] for line in logged] == [1, 2, 3, 4]


def test_a_trial_continues_after_the_last_round_that_all_federations_have(tmp_path):
    variants = (FederationVariant(0), FederationVariant(1))
    search = replace(searched(tmp_path, "rounds=5"), session="one", variants=variants)
    trial = TrialRounds(search, 1, {"algorithm.lr": 0.01}, TrialCache(search))
    assert [trial.step()["round"] for _ in range(3)] == [1, 2, 3]
    trial.close()
    shutil.rmtree(tmp_path / "trials" / "0001" / "seed-1" / "checkpoints" / "round_0003")
    again = TrialRounds(search, 1, {"algorithm.lr": 0.01}, TrialCache(search))
    assert [again.step()["round"] for _ in range(3)] == [3, 4, 5]


def test_a_trial_that_takes_over_a_state_continues_exactly_from_it(tmp_path):
    search = searched(tmp_path, "algorithm=ditto", "rounds=4", "algorithm.schedule=cosine", scheduler="pbt")
    cache = TrialCache(search)
    donor, other = (TrialRounds(search, n, {"algorithm.lr": lr}, cache) for n, lr in ((1, 0.01), (2, 0.0003)))
    donor.step()
    assert donor.step()["round"] == 2
    assert other.step()["round"] == 1
    (tmp_path / "given").mkdir()
    donor.export_state(tmp_path / "given")
    donor.step()  # the donor continues, which does not change the exported state
    other.close()
    other = TrialRounds(search, 2, {"algorithm.lr": 0.005}, cache)
    other.import_state(tmp_path / "given")
    third = other.step()
    assert third["round"] == 3
    logged = [row["inside/val/dice/mean"] for row in logged_rounds(other.directory)]
    assert third["best_values"] == {"inside/val/dice/mean": max(logged)}  # of the copied rounds, not of its own before
    last = other.step()
    assert last["done"]
    # The same by hand: two rounds with the rate of the donor, then two with the new rate.
    start = checkpoint.read(tmp_path / "given" / "federation" / "checkpoints" / "round_0002")
    config = search.config({"algorithm.lr": 0.005}, search.variants[0])
    fleet = LocalFleet(search.task, seed=0, rounds=4)
    *_, final = federate(config.algorithm, search.task, fleet, rounds=4, start=start)
    assert last["digests"] == {"": digest(final.state, fleet.client_states)}
    save_record(tmp_path, TrialRecord(2, {"algorithm.lr": 0.0003}))
    assert load_records(tmp_path)[0].values == {
        "algorithm.lr": 0.005
    }  # a search that ends now continues with these values
    assert load_records(tmp_path)[0].lineage
    lineage = json.loads((tmp_path / "trials" / "0002" / "lineage.jsonl").read_text())
    assert lineage == {"round": 2, "from": 1, "values": {"algorithm.lr": 0.005}}
    # The process is lost before Tune has the last round: the round is reported again, but not run again.
    again = TrialRounds(search, 2, {"algorithm.lr": 0.005}, cache).step()
    assert again == last


def test_a_trial_that_gets_the_same_state_again_keeps_its_rounds(tmp_path):
    search = searched(tmp_path, "rounds=4", scheduler="pbt")
    cache, folder = TrialCache(search), tmp_path / "trials" / "0002"
    donor = TrialRounds(search, 1, {"algorithm.lr": 0.01}, cache)
    assert [donor.step()["round"] for _ in range(2)] == [1, 2]
    (tmp_path / "given").mkdir()
    donor.export_state(tmp_path / "given")

    def given() -> TrialRounds:  # like Tune in a new process
        found = TrialRounds(search, 2, {"algorithm.lr": 0.005}, cache)
        found.import_state(tmp_path / "given")
        return found

    first = given()
    assert first.step()["round"] == 3
    first.close()
    last = given().step()
    assert last["round"] == 4
    assert len(lineage(folder)) == 1

    copies = folder / "adopted"
    copies.mkdir()  # an incomplete copy is ignored
    assert given().step()["round"] == 4
    assert not copies.exists()
    shutil.copytree(tmp_path / "given" / "federation", copies / "federation")
    (copies / "lineage.json").write_text(json.dumps({"round": 2, "from": 1, "values": {"algorithm.lr": 0.01}}))
    shutil.rmtree(folder / "checkpoints")  # the process and the search were lost during the move
    assert lineage(folder)[-1]["values"] == {"algorithm.lr": 0.01}
    again = TrialRounds(search, 2, {"algorithm.lr": 0.01}, cache)
    assert [again.step()["round"] for _ in range(2)] == [3, 4]
    assert len(lineage(folder)) == 2
    assert not copies.exists()


@dataclass(frozen=True, kw_only=True)
class FailsWithASeed(FedAvg):
    """FedAvg whose second round fails with seed 1."""

    def client(self, site, model):
        if site.round == 1 and site.seed == 1:
            raise RunError("seed 1 fails")
        return super().client(site, model)


def seeds_of(folder, failed_federations):
    search = searched(folder, "rounds=3", f"algorithm={__name__}:FailsWithASeed")
    variants = (FederationVariant(0), FederationVariant(1), FederationVariant(2))
    search = replace(search, variants=variants, failed_federations=failed_federations)
    return search, TrialRounds(search, 1, {"algorithm.lr": 0.01}, TrialCache(search))


def test_the_cause_of_a_failed_trial_names_the_federation(tmp_path):
    _, trial = seeds_of(tmp_path, "fail")
    assert trial.step()["round"] == 1
    failed = trial.step()
    assert failed["status"] == "failed"
    assert failed["cause"].startswith("federation seed-1: ")
    assert "seed 1 fails" in failed["cause"]


def test_a_failed_federation_is_left_out_if_the_user_chose_so(tmp_path):
    search, trial = seeds_of(tmp_path, "leave-out")
    rows = [trial.step() for _ in range(3)]
    assert [row["round"] for row in rows] == [1, 2, 3]
    assert "cause" not in rows[0]
    assert rows[2]["cause"].startswith("left out: federation seed-1: ")
    assert rows[2]["digests"].keys() == {"seed-0", "seed-2"}
    loss = {seed: [row["loss"] for row in logged_rounds(trial.directory / f"seed-{seed}")] for seed in range(3)}
    assert rows[0]["loss"] == pytest.approx(sum(loss[seed][0] for seed in range(3)) / 3)
    assert rows[2]["loss"] == pytest.approx((loss[0][2] + loss[2][2]) / 2)
    again = TrialRounds(replace(search, session="two"), 1, {"algorithm.lr": 0.01}, TrialCache(search))
    assert again.step() == rows[2]  # a resumed search has the same row
    results = SearchResults(search, [], "best")
    results.records[1] = TrialRecord(1, {"algorithm.lr": 0.01})
    results.add_round(1, rows[2])
    results.write_tables()
    text = (tmp_path / "best.yaml").read_text()
    assert "# These values are means over 3 federations: seed-0, seed-1, seed-2." in text
    assert "# left out: federation seed-1: " in text
    assert "# This file has seed 0. The values with this seed: inside/val/dice/mean 0." in text


def test_a_trial_keeps_its_initial_weights(tmp_path):
    given, trial = tmp_path / "first.safetensors", tmp_path / "trials" / "0001"
    write_model(given, weights(searched(tmp_path).task.start(5)))
    search = searched(tmp_path, "rounds=1", f"task.network.weights={given}", "algorithm.trainable=[model.2.*]")
    assert TrialRounds(search, 1, {"algorithm.lr": 0.01}, TrialCache(search)).step()["done"]
    kept = load_file(given)
    given.unlink()  # after the search
    exported = exported_network(open_run(trial), None, use_global=True).net.state_dict()
    assert all(name.startswith("model.2.") != torch.equal(exported[name], kept[name]) for name in kept)
