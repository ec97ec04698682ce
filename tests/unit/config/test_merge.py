"""The configuration: files and overrides, short forms, checked values, and messages with the cure."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from annotated_types import Ge, Gt

from algorithms.fedavg import FedAvg
from algorithms.fedprox import FedProx
from raysim.config.introspection import field_docs
from raysim.config.merge import merge, parse_pairs, read_file
from raysim.config.resolve import build, load_config, resolve, to_mapping
from raysim.config.schema import Cohort, Resources, RunConfig, SiteResources
from raysim.core.errors import ConfigError
from raysim.core.registry import algorithms


def resolved(*arguments: str, file: str = "", folder: Path | None = None) -> RunConfig:
    given = {}
    if folder is not None:
        (folder / "run.yaml").write_text(file)
        given = read_file(str(folder / "run.yaml"))
    return resolve(merge(given, parse_pairs(arguments)))


def refused(*arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        resolved(*arguments)
    return str(caught.value)


def test_the_default_is_fedavg_on_the_synthetic_task() -> None:
    run = resolved()
    assert run.algorithm == FedAvg()
    assert (type(run.task).__name__, run.cohort, run.seed, run.backend) == ("Synthetic", Cohort(), 0, "ray")
    assert run.resources == Resources(gpus_per_client=0.0, cpus_per_client=1.0, client_actors="auto")


def test_overrides_set_fields_of_their_type() -> None:
    run = resolved(
        "rounds=7", "algorithm=fedprox", "algorithm.mu=1e-3", "algorithm.lr=2", "algorithm.optimizer=sgd",
        "algorithm.clip=null", "algorithm.amp=true", "task.data.size=[16, 32]", "task.data.outside=[x, y]",
        "resources.client_actors=per_site", "cohort=2",
    )  # fmt: skip
    assert run.rounds == 7
    assert run.algorithm == FedProx(mu=0.001, lr=2.0, optimizer="sgd", clip=None, amp=True)
    assert type(run.algorithm.lr) is float
    assert (run.task.data.size, run.task.data.outside) == ((16, 32), ("x", "y"))
    assert (run.resources.client_actors, run.cohort) == ("per_site", Cohort(size=2))


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "0.001", ".001", "1.e-3", "+1e-3"])
def test_a_number_with_an_exponent_is_a_number(text: str) -> None:
    assert resolved(f"algorithm.lr={text}").algorithm.lr == 0.001


@pytest.mark.parametrize(
    ("text", "value"),
    [("12", 12), ("1.5", 1.5), ("1e3", 1000.0), ("e3", "e3"), ("", None), ("no", False), ("[1]", [1])],
)
def test_values_are_yaml(text: str, value: Any) -> None:
    found = parse_pairs([f"key={text}"])["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "arguments",
    [("cohort=0.5", "cohort.dropout=0.1"), ("cohort.dropout=0.1", "cohort=0.5"), ("cohort={size: 0.5, dropout: 0.1}",)],
)
def test_a_cohort_has_a_size_and_a_dropout(arguments: tuple[str, ...]) -> None:
    assert resolved(*arguments).cohort == Cohort(size=0.5, dropout=0.1)


def test_sites_may_have_dedicated_resources() -> None:
    arguments = ("resources.sites.site-02.gpus=0.5", "resources.sites={a.b: {cpus: 2}}", "resources.cpus_per_client=3")
    resources = resolved(*arguments).resources
    assert resources.sites == {"site-02": SiteResources(gpus=0.5), "a.b": SiteResources(cpus=2.0)}
    assert [resources.of(site) for site in ("site-02", "a.b", "other")] == [(3.0, 0.5), (2.0, 0.0), (3.0, 0.0)]


def test_the_size_of_a_cohort_is_a_number_or_a_fraction() -> None:
    assert [type(resolved(f"cohort={text}").cohort.size) for text in ("1", "1.0", "0.5")] == [int, float, float]


def test_a_file_and_overrides_give_the_same_run(tmp_path: Path) -> None:
    file = "rounds: 5\nalgorithm: {name: fedprox, mu: 0.5, lr: 1e-2}\ntask:\n  data: {sites: 3}\n"
    arguments = ("rounds=5", "algorithm.name=fedprox", "algorithm.mu=0.5", "algorithm.lr=1e-2", "task.data.sites=3")
    assert resolved(file=file, folder=tmp_path) == resolved(*arguments)


def test_overrides_take_precedence_over_the_file_key_by_key(tmp_path: Path) -> None:
    file = "rounds: 5\nalgorithm: {name: fedprox, mu: 0.5, lr: 0.25}\n"
    run = resolved("rounds=6", "algorithm.lr=0.125", file=file, folder=tmp_path)
    assert (run.rounds, run.algorithm) == (6, FedProx(mu=0.5, lr=0.125))


@pytest.mark.parametrize("file", ["", "# nothing\n", "{}"])
def test_an_empty_file_is_the_default(tmp_path: Path, file: str) -> None:
    assert resolved(file=file, folder=tmp_path) == resolved()


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("task=synthetic", "task.name=synthetic"),
        ("algorithm=fedprox", "algorithm.name=fedprox"),
        ("network=dynunet", "task.network.name=dynunet"),
        ("network.channels=[4,8]", "task.network.channels=[4,8]"),
        ("task.network=dynunet", "task.network.name=dynunet"),
        ("data.sites=3", "task.data.sites=3"),
    ],
)
def test_short_forms(short: str, long: str) -> None:
    assert resolved(short) == resolved(long)


def test_an_override_takes_precedence_over_the_files_short_form(tmp_path: Path) -> None:
    file = "network: {channels: [4, 8]}\ndata: {sites: 3}\n"
    run = resolved("task.network.channels=[2,4]", "task.data.sites=4", file=file, folder=tmp_path)
    assert (run.task.network["channels"], run.task.data.sites) == ([2, 4], 4)


def test_a_later_override_takes_precedence() -> None:
    assert resolved("rounds=3", "rounds=4").rounds == 4


def test_an_argument_of_the_default_network_keeps_the_others() -> None:
    network = resolved("network.num_res_units=7").task.network
    assert network == {**resolved().task.network, "num_res_units": 7}


@pytest.mark.parametrize("key", ["network", "task.network"])
def test_another_network_drops_the_arguments_of_the_old_one(tmp_path: Path, key: str) -> None:
    assert resolved(f"{key}=dynunet").task.network == {"name": "dynunet"}
    file = "network: {name: segresnet, init_filters: 8}"
    assert resolved(f"{key}=dynunet", file=file, folder=tmp_path).task.network == {"name": "dynunet"}


def test_another_algorithm_keeps_the_fields_they_share(tmp_path: Path) -> None:
    run = resolved("algorithm=fedprox", file="algorithm: {name: fedavg, lr: 0.5}", folder=tmp_path)
    assert run.algorithm == FedProx(lr=0.5)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("rondus=3", "unknown key 'rondus' (did you mean 'rounds'?)"),
        ("algorithm.learning_rte=1", "unknown key 'algorithm.learning_rte'"),
        ("algorithm.optimzer=sgd", "unknown key 'algorithm.optimzer' (did you mean 'algorithm.optimizer'?)"),
        ("task.batchsize=1", "unknown key 'task.batchsize' (did you mean 'task.batch_size'?)"),
        ("task.data.site=1", "unknown key 'task.data.site' (did you mean 'task.data.sites'?)"),
        ("resources.client=1", "unknown key 'resources.client' (did you mean 'resources.client_actors'?)"),
        ("algorithm=fedavgg", "unknown algorithm 'fedavgg' (did you mean 'fedavg'?)"),
        ("task=synthetik", "unknown task 'synthetik' (did you mean 'synthetic'?)"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_name(argument: str, message: str) -> None:
    assert refused(argument).startswith(message)


def test_the_message_for_an_unknown_name_lists_the_valid_names() -> None:
    assert "batch_size, data, loss, metrics" in refused("task.zzz=1").replace("augment, ", "")
    assert f"valid: {', '.join(sorted(algorithms()))}, or your own" in refused("algorithm=zzz")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("rounds=0", "rounds=0: expected a number greater than 0"),
        ("rounds=ten", "rounds='ten': expected a whole number"),
        ("rounds=2.5", "rounds=2.5: expected a whole number"),
        ("rounds=true", "rounds=true: expected a number"),
        ("cohort.dropout=1", "cohort.dropout=1: expected a number less than 1"),
        (
            "cohort.drop=1",
            "unknown key 'cohort.drop' (did you mean 'cohort.dropout'?); valid under cohort: dropout, size",
        ),
        (
            "resources.sites.a.gpu=1",
            "unknown key 'resources.sites.a.gpu' (did you mean 'resources.sites.a.gpus'?); "
            "valid under resources.sites.a: cpus, gpus",
        ),
        ("resources.sites.a.cpus=0", "resources.sites.a.cpus=0: expected a number greater than 0"),
        ("resources.sites.a=2", "resources.sites.a=2: expected keys and values, as in '{key: value}'"),
        ("site_timeout_s=0", "site_timeout_s=0: expected a number greater than 0"),
        ("cohort=true", "cohort.size=true: expected a number"),
        ("rounds=", "rounds has no value: expected a whole number"),
        ("rounds=[3]", "rounds=[3]: expected a whole number"),
        ("rounds.x=3", "rounds={'x': 3}: expected a whole number"),
        ("cohort=0.0", "cohort.size=0.0: expected a number greater than 0"),
        ("seed=-1", "seed=-1: expected a number greater than or equal to 0"),
        ("backend=spark", "backend='spark': expected 'ray' or 'local'"),
        ("algorithm.lr=0", "algorithm.lr=0: expected a number greater than 0"),
        ("algorithm.lr=fast", "algorithm.lr='fast': expected a number such as 0.5"),
        ("algorithm.momentum=1", "algorithm.momentum=1: expected a number less than 1"),
        ("algorithm.optimizer=lion", "algorithm.optimizer='lion': expected 'sgd', 'adam' or 'adamw'"),
        ("algorithm.steps=0", "algorithm.steps=0: expected a number greater than 0"),
        ("algorithm.steps=true", "algorithm.steps=true: expected a number"),
        ("algorithm.amp=maybe", "algorithm.amp='maybe': expected true or false"),
        ("task.data.severity=2", "task.data.severity=2: expected a number less than or equal to 1"),
        ("task.data.size=[16,4]", "task.data.size.1=4: expected a number greater than or equal to 8"),
        ("resources.cpus_per_client=0", "resources.cpus_per_client=0: expected a number greater than 0"),
        ("resources=3", "resources=3: expected keys and values, as in '{key: value}'"),
        ("algorithm=3", "algorithm=3: expected a name, or keys such as algorithm.name=fedavg"),
        ("task.name=3", "task.name=3: expected a name such as synthetic"),
        ("task=", "task has no value: expected a name, or keys such as task.name=synthetic"),
        ("seed=1e40", "seed=1e+40: expected a whole number; write a large number with all its digits"),
        ("cohort=all", "cohort.size='all': expected a whole number, or a number such as 0.5"),
        ("metric=true", "metric=true: expected text; for the text 'true' write '\"true\"'"),
        ("task.metrics=[]", "task.metrics=[]: expected at least 1 item, not 0"),
        ("task.network={3: 4}", "the key 3 of task.network: expected text"),
    ],
)
def test_a_wrong_value_is_refused_with_the_expected_value(argument: str, message: str) -> None:
    assert refused(argument) == message


def test_a_value_of_a_union_is_refused_under_its_key() -> None:
    expected = "'auto' or 'per_site', or a whole number"
    assert refused("resources.client_actors=some") == f"resources.client_actors='some': expected {expected}"


def test_one_message_lists_all_wrong_values_of_a_part() -> None:
    assert refused("algorithm.lr=0", "algorithm.epochs=0") == (
        "algorithm.lr=0: expected a number greater than 0; algorithm.epochs=0: expected a number greater than 0"
    )


@pytest.mark.parametrize("argument", ["rounds", "=3", ".rounds=3", "a..b=3", "a b=3", "rounds:3"])
def test_an_argument_without_key_and_value_is_refused(argument: str) -> None:
    with pytest.raises(ConfigError, match="expected key=value, such as rounds=20"):
        parse_pairs([argument])


def test_a_value_that_is_not_yaml_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cannot read rounds=\[3: it is not valid YAML .*; put text in quotes"):
        parse_pairs(["rounds=[3"])
    with pytest.raises(ConfigError, match=r"not valid YAML .*month must be in 1\.\.12.*; put text in quotes"):
        parse_pairs(["metric=2024-99-99"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"rounds: [3", "run.yaml: it is not valid YAML"),
        (b"- 3", "run.yaml is a list: expected keys and values, such as `rounds: 20`"),
        (b"3: 4", "run.yaml: key 3 is not text"),
        (b"task:\n  3: 4", "run.yaml: key 3 is not text"),
        (b"seed: 1\nnetwork: {name:unet}", "run.yaml, line 2: 'name:unet' has no value; expected a space after ':'"),
        (b"\xff\xfe\x00x", "it is not text"),
    ],
)
def test_a_file_that_is_not_a_configuration_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "run.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_file(str(tmp_path / "run.yaml"))
    assert message in str(caught.value)


def test_a_file_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*: No such file"):
        read_file(str(tmp_path / "none.yaml"))
    with pytest.raises(ConfigError, match="Is a directory"):
        read_file(str(tmp_path))


@pytest.mark.parametrize(
    "arguments", [(), ("algorithm=fedprox", "cohort=2", "task.data.size=[16,16,16]", "network=segresnet", "metric=x")]
)
def test_a_written_configuration_resolves_to_the_same_run(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    run = resolved(*arguments)
    text = yaml.safe_dump(to_mapping(run), sort_keys=False)
    again = resolved(file=text, folder=tmp_path)
    assert to_mapping(again) == to_mapping(run)
    assert again.algorithm == run.algorithm
    assert text.startswith("task:\n  name: synthetic\n")


@dataclass(frozen=True, kw_only=True)
class Inner:
    name: Annotated[Literal["one", "two"], "which"] = "one"
    depth: Annotated[int, Gt(0), "levels"] = 3


@dataclass(frozen=True, kw_only=True)
class Own:
    """A user-defined task with a field `name`."""

    name: str = "anything"
    inner: Annotated[Inner, "inside"] = field(default_factory=Inner)
    maybe: Annotated[Inner | None, "perhaps"] = None
    rates: Annotated[tuple[float, ...], "rates"] = (0.5,)
    limit: Annotated[float | None, Ge(0), "mm"] = None

    def build(self, progress: object = None) -> None: ...


def test_a_user_defined_task_is_written_as_module_and_class() -> None:
    run = resolve({"task": f"{__name__}:Own"})
    assert to_mapping(run)["task"]["name"] == f"{__name__}:Own"
    assert resolve(to_mapping(run)).task == Own()


def test_nested_dataclasses_by_name_or_by_keys() -> None:
    assert build(Own, {"inner": "two"}, "task").inner == Inner(name="two")
    assert build(Own, {"maybe": {"depth": 5}}, "task").maybe == Inner(depth=5)
    with pytest.raises(ConfigError, match=r"task.inner.name='six': expected 'one' or 'two'"):
        build(Own, {"inner": "six"}, "task")
    with pytest.raises(ConfigError, match=r"unknown key 'task.inner.dept' \(did you mean 'task.inner.depth'\?\)"):
        build(Own, {"inner": {"dept": 5}}, "task")
    with pytest.raises(ConfigError, match=r"task\.inner\.depth=0: expected a number greater than 0"):
        build(Own, {"inner": {"depth": 0}}, "task")


def test_a_missing_required_value_is_refused() -> None:
    @dataclass(frozen=True, kw_only=True)
    class RequiresValue:
        pull: float

    with pytest.raises(ConfigError, match=r"^algorithm.pull is missing: expected a value$"):
        build(RequiresValue, {}, "algorithm")


def test_fields_are_documented_with_kind_limits_and_default() -> None:
    rows = {row.name: (row.kind, row.default, row.doc) for row in field_docs(Own)}
    assert rows == {
        "name": ("str", "anything", ""),
        "inner.name": ("one | two", "one", "which"),
        "inner.depth": ("int > 0", "3", "levels"),
        "maybe.name": ("one | two", "one", "which"),
        "maybe.depth": ("int > 0", "3", "levels"),
        "rates": ("list of float", "[0.5]", "rates"),
        "limit": ("float | none >= 0", "null", "mm"),
    }


def test_every_key_of_a_run_is_documented() -> None:
    for row in field_docs(RunConfig):
        assert row.doc, row.name


def test_a_resolved_run_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        resolved().rounds = 3  # type: ignore[misc]


@pytest.mark.parametrize("value", [".inf", ".nan", "inf", "-inf", "Infinity", "nan"])
@pytest.mark.parametrize("key", ["algorithm.lr", "algorithm.clip", "algorithm.weight_decay", "cohort.size"])
def test_a_number_must_be_finite(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{key}=.*a finite number$"):
        resolve(parse_pairs([f"{key}={value}"]))


def test_a_number_in_a_list_must_be_finite() -> None:
    assert refused("task=segmentation", "data.spacing=[inf, 1]") == (
        "task.data.spacing.0='inf': expected a finite number"
    )


def test_a_duplicate_key_in_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text("rounds: 3\nrounds: 4\n")
    with pytest.raises(ConfigError, match="line 2: key 'rounds' is given twice"):
        read_file(str(tmp_path / "twice.yaml"))


def test_a_list_is_expected_in_yaml_notation() -> None:
    assert refused("task.data.outside=lesav") == "task.data.outside='lesav': expected a list, as in [a,b]"
    assert refused("task.data.size=[8]") == "task.data.size=[8]: expected at least 2 items, not 1"


def test_classes_of_an_override_replace_the_classes_of_the_file(tmp_path: Path) -> None:
    file = "task: {name: segmentation, data: {classes: {background: 0, vessel: 255}}}\n"
    run = resolved("task.data.classes={background: 0, disc: 128}", file=file, folder=tmp_path)
    assert run.task.data.classes == {"background": 0, "disc": 128}


@pytest.mark.parametrize(
    ("argument", "key"),
    [
        ("metrics=[dice]", "task.metrics"),
        ("metrcs=[dice]", "task.metrics"),
        ("sites=3", "task.data.sites"),
        ("lr=0.1", "algorithm.lr"),
        ("metrc=x", "metric"),
        ("dta.sites=3", "data"),
    ],
)
def test_a_key_of_the_task_or_the_algorithm_is_suggested_with_its_prefix(argument: str, key: str) -> None:
    message = refused(argument)
    assert "did you mean" not in refused("zq=3")
    assert f"(did you mean '{key}'?)" in message
    assert "keys of the task begin with task., keys of the algorithm with algorithm." in message


def test_only_the_wrong_value_of_a_mapping_is_refused() -> None:
    # `classes` may also be a list, but the message must be about the mapping.
    arguments = "task=segmentation", "data.classes={bg: 0, fg: 1.5}"
    assert refused(*arguments) == "task.data.classes.fg=1.5: expected a whole number"
    assert refused("task=segmentation", "data.table=") == "task.data.table has no value: expected text"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "network={name:unet,channels:[4,8]}",
            "'name:unet' has no value; expected a space after ':', as in name: unet",
        ),
        (
            "network={name: unet, num_res_units:2}",
            "'num_res_units:2' has no value; expected a space after ':', as in num_res_units: 2",
        ),
        ("data.classes={bg:0,fg:255}", "'bg:0' has no value; expected a space after ':', as in bg: 0"),
        (
            "task.augment=[{name: rand_flip, prob:1}]",
            "'prob:1' has no value; expected a space after ':', as in prob: 1",
        ),
    ],
)
def test_a_colon_without_a_space_is_refused(argument: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^cannot read .*: {message}$"):
        parse_pairs([argument])


def test_a_colon_within_a_value_is_valid() -> None:
    assert parse_pairs(['a={"b:c": 1, d:e: 2, f: "g:h", "i:j": }'])["a"] == {
        "b:c": 1,
        "d:e": 2,
        "f": "g:h",
        "i:j": None,
    }


@pytest.mark.parametrize(
    "file",
    [
        "rounds: 5\ntask.data.sites: 3\nalgorithm.name: fedprox\nalgorithm.mu: 0.5\n",
        "rounds: 5\ndata.sites: 3\nalgorithm: fedprox\nalgorithm.mu: 0.5\n",
        "algorithm.mu: 0.5\nalgorithm: fedprox\nrounds: 5\ntask: {data.sites: 3}\n",
        "rounds: 5\ntask.data: {sites: 3}\ndata.sites: 3\nalgorithm: {name: fedprox, mu: 0.5}\n",
    ],
)
def test_keys_of_a_file_may_be_dotted(tmp_path: Path, file: str) -> None:
    arguments = ("rounds=5", "task.data.sites=3", "algorithm=fedprox", "algorithm.mu=0.5")
    assert resolved(file=file, folder=tmp_path) == resolved(*arguments)
    assert resolved("task.data.sites=4", file=file, folder=tmp_path).task.data.sites == 4


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("task.data.sites: 2\ndata: {sites: 3}", "data"),
        ("data: {sites: 3}\ntask.data.sites: 2", "task.data.sites"),
        ("task: {data: {sites: 3}, data.sites: 2}", "task.data.sites"),
        ("algorithm: fedavg\nalgorithm.name: fedprox", "algorithm.name"),
        ("rounds: 3\nrounds.x: 3", "rounds.x"),
    ],
)
def test_two_values_of_one_key_in_a_file_are_refused(tmp_path: Path, file: str, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"run.yaml: {key} contradicts another entry of the file; keep one"):
        resolved(file=file, folder=tmp_path)


def test_a_dot_in_a_user_defined_name_is_kept(tmp_path: Path) -> None:
    file = "task: {name: segmentation, data.classes: {background: 0, grade.3: 3}}\nnetwork: {a.b: 1}\n"
    task = resolved(file=file, folder=tmp_path).task
    assert task.data.classes == {"background": 0, "grade.3": 3}
    assert task.network["a.b"] == 1


@dataclass(frozen=True, kw_only=True)
class WithFunction(FedAvg):
    convert: Any = abs
    names: tuple[Any, ...] = ()


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (WithFunction(), r"algorithm\.convert=<built-in function abs>: config\.yaml cannot store a builtin_function"),
        (WithFunction(convert=1, names=("a", {2})), r"algorithm\.names=\{2\}: config\.yaml cannot store a set"),
    ],
)
def test_a_value_that_the_configuration_file_cannot_hold_is_refused(algorithm: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(replace(resolved(), algorithm=algorithm))
    assert load_config(replace(resolved(), algorithm=WithFunction(convert=None)))
