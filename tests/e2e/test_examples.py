"""The examples and the commands of the README are valid."""

import re

import pytest

from raysim import LocalFleet, federate
from raysim.config.merge import merge, parse_pairs, read_file
from raysim.config.resolve import resolve
from raysim.federation.plan import chosen_metric
from raysim.federation.validation import check_training
from tests.support.paths import DATA, ROOT
from tests.support.slow import slow_except

EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
TABLES = {
    "retina": "retina_vessels",
    "hippocampus": "hippocampus_3d",
    "hippocampus_fcl": "hippocampus_3d",
    "spinal": "spinal_gm_3d",
    "wbc": "wbc_classification",
    "heart": "heart_disease",
}
SMALL = {
    "retina": ["task.data.size=[64,64]", "task.metrics=[dice]"],
    "hippocampus": ["task.data.size=[24,32,24]", "task.metrics=[dice]"],
    "hippocampus_fcl": ["algorithm.pretrain_rounds=1", "algorithm.steps=1", "algorithm.finetune.steps=1"],
    "spinal": ["task.data.size=[32,32]", "task.metrics=[dice]"],
    "wbc": ["task.data.size=[32,32]"],
    "heart": [],
}
QUICK = [path for path in EXAMPLES if path.stem in ("spinal", "heart")]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_a_valid_configuration(path):
    config = resolve(read_file(str(path)))
    assert config.task.data.table == ""  # the key that the user sets


@pytest.mark.data
@pytest.mark.filterwarnings("ignore:task.data.size cuts")  # small on purpose
@pytest.mark.parametrize("path", slow_except(EXAMPLES, QUICK), ids=lambda path: path.stem)
def test_an_example_trains_on_its_real_data(path, tmp_path):
    table = DATA / TABLES[path.stem] / "table.csv"
    if not table.exists():
        pytest.skip(f"no real data at {table.parent.name}/ beside the project")
    arguments = [f"task.data.table={table}", f"task.data.cache={tmp_path}", *SMALL[path.stem]]
    config = resolve(merge(read_file(str(path)), parse_pairs(arguments)))
    task = config.task.build()
    check_training(task)
    rounds = 2 if hasattr(config.algorithm, "pretrain_rounds") else 1
    *_, last = federate(config.algorithm, task, LocalFleet(task, rounds=rounds), rounds=rounds)
    evaluated = {(score.site, score.split, score.metric) for score in last.scores}
    _, split, metric = chosen_metric(task, config.metric).split("/")
    assert any(found[1:] == (split, metric) for found in evaluated)
    # A split that a site does not have is absent, not zero.
    for site, sizes in task.sizes.items():
        for part in ("val", "test"):
            assert any(found[:2] == (site, part) for found in evaluated) == (sizes[part] > 0), (site, part)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "rounds", "least"), slow_except([("heart", 30, 0.65), ("wbc", 8, 0.3)], [("heart", 30, 0.65)])
)
def test_an_example_learns_its_classes(name, rounds, least, tmp_path):
    table = DATA / TABLES[name] / "table.csv"
    if not table.exists():
        pytest.skip(f"no real data at {table.parent.name}/ beside the project")
    arguments = [f"task.data.table={table}", f"task.data.cache={tmp_path}", *SMALL[name]]
    config = resolve(merge(read_file(str(ROOT / "examples" / f"{name}.yaml")), parse_pairs(arguments)))
    task = config.task.build()
    *_, last = federate(config.algorithm, task, LocalFleet(task, rounds=rounds), rounds=rounds, evaluate_every=rounds)
    found = [s.value for s in last.scores if (s.split, s.metric) == ("test", "balanced_accuracy")]
    assert len(found) == len(task.inside)
    assert sum(found) / len(found) > least  # by chance 1/2 and 1/5


def test_the_readme_has_no_placeholder_and_no_dead_link():
    assert not re.findall(r"^[A-Z0-9]+_[A-Z_0-9]+$", README, re.M)
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link.partition("#")[0]).exists()] == []
