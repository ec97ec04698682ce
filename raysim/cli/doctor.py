"""`raysim doctor`: checks Ray, the nodes and the data, measures one batch, and proposes `resources`."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from raysim.config.schema import RunConfig
from raysim.core.errors import PlacementError
from raysim.core.formatting import format_bytes, pluralize
from raysim.data.required_paths import required_paths
from raysim.distributed import node_checks, node_probe
from raysim.distributed.admission import check_object_store
from raysim.distributed.autoscaling import provisionable_nodes
from raysim.distributed.batch_measurement import (
    THREADS,
    BatchProbe,
    Machine,
    propose_resources,
    round_seconds,
    steps_of,
)
from raysim.distributed.node_checks import Check, NodeReport, Verdict
from raysim.distributed.probe_environment import ProbeEnvironment, open_probe_environment
from raysim.distributed.resources import ActorResources, NodeCapacity, NodeResources, plan_actors
from raysim.distributed.timeouts import BATCH_PROBE_TIMEOUT_S
from raysim.federation.plan import Plan, build_plan
from raysim.federation.site_executor import Failure, torch_threads
from raysim.federation.validation import validate
from raysim.reporting.console import RunConsole
from raysim.storage.run_directory import runs_directory

FAILED = "a run would fail with the same error; if it ran out of memory, use a smaller task.batch_size"
STYLES = {Verdict.OK: "green", Verdict.NOTE: "yellow", Verdict.WRONG: "bold red"}


def doctor(config: RunConfig, out: str | None, display: RunConsole) -> int:
    """Print the checks, the measurements of one batch and the proposed resources; return the exit code.

    The exit code is 0 if no check fails, 3 if the configured resources cannot be placed, 1 if another check fails.
    Raises ConfigError for a wrong configuration, PlacementError if Ray cannot be joined or started.
    """
    folder = Path(out).absolute() if out else runs_directory()
    with display.live():
        plan = build_plan(config, Path(node_probe.existing(str(folder))), emit=display.show)
        validate(plan, display.show)
    reads, writes = required_paths(plan.task, config.task)
    display.say("checking this machine" if config.backend == "local" else "starting Ray and checking the nodes")
    with open_probe_environment(config, reads, writes) as environment:
        actors, placed = _placed(config, plan, environment)
        found = [*_checks(environment, folder, reads, writes), placed, *_stored(plan, environment)]
        probe: BatchProbe | Failure | None = None
        if placed.verdict is not Verdict.NOTE:  # a note means that the autoscaler must add nodes first
            display.say(f"running one batch, for at most {BATCH_PROBE_TIMEOUT_S:g} s")
            probe = _probe(config, plan, environment, actors)
    if isinstance(probe, Failure):
        found.append(Check("batch", Verdict.WRONG, probe.cause, FAILED))
    elif probe is not None:
        found += _crowded(environment, actors, probe, len(plan.task.inside))
    display.console.print(_table(found))
    if isinstance(probe, BatchProbe):
        _report(plan, environment, actors, probe, display)
    if placed.verdict is Verdict.WRONG:
        return PlacementError.exit_code
    return int(any(check.verdict is Verdict.WRONG for check in found))


def _checks(
    environment: ProbeEnvironment, folder: Path, reads: Sequence[str], writes: Sequence[str]
) -> Iterator[Check]:
    facts = node_checks.probed_facts(environment.nodes)
    yield environment.check
    yield from node_checks.of_nodes(environment.nodes)
    yield from node_checks.of_gpus(environment.nodes)
    yield from node_checks.of_versions(facts, node_probe.versions())
    if environment.is_local_ray is not None:
        yield from node_checks.of_listening(facts, environment.is_local_ray)
        yield node_checks.of_token(os.environ, Path.home(), environment.open_to_all)
        yield from node_checks.of_disks(environment.nodes)
    yield node_checks.of_folder(folder)
    yield from node_checks.of_paths(facts, reads, writes)


def _placed(config: RunConfig, plan: Plan, environment: ProbeEnvironment) -> tuple[list[ActorResources], Check]:
    """The client actors that a run would start (none if they cannot be placed), and the check of their placement."""
    resources, task = config.resources, plan.task
    nodes = [NodeResources(node.name, node.cpus, node.gpus) for node in environment.nodes]
    if environment.is_local_ray is None:  # one process runs all sites, with any number of threads
        nodes = [replace(each, cpus=math.inf) for each in nodes]
        resources = replace(resources, client_actors=1, sites={})
    try:
        actors = plan_actors(resources, task.inside, nodes, task.outside)
    except PlacementError as error:
        more = provisionable_nodes() if environment.is_local_ray is False else []
        with suppress(PlacementError):
            many = len(plan_actors(resources, task.inside, [*nodes, *more], task.outside))
            if more:
                found = f"not enough free resources for {pluralize(many, 'client actor')} yet"
                added = f"a run requests nodes from the autoscaler, which can add {len(more)}"
                return [], Check("resources", Verdict.NOTE, f"{found}; {added}; no batch was run")
        return [], Check("resources", Verdict.WRONG, str(error))
    if environment.is_local_ray is None:
        threads = pluralize(torch_threads(resources.cpus_per_client), "torch thread")
        return actors, Check("resources", Verdict.OK, f"all sites in this process, {threads}")
    kinds = Counter((actor.cpus, actor.gpus) for actor in actors)
    each = [
        f"{pluralize(count, 'client actor')} of {cpus:g} CPU, {gpus:g} GPU" for (cpus, gpus), count in kinds.items()
    ]
    return actors, Check("resources", Verdict.OK, ", ".join(each))


def _stored(plan: Plan, environment: ProbeEnvironment) -> Iterator[Check]:
    """The checks of whether the models of a round fit into Ray's object store."""
    if environment.is_local_ray is None:
        return
    try:
        yield from (Check("object store", Verdict.NOTE, note.text) for note in check_object_store(plan))
    except PlacementError as error:
        yield Check("object store", Verdict.WRONG, str(error))


def _probe(
    config: RunConfig, plan: Plan, environment: ProbeEnvironment, actors: Sequence[ActorResources]
) -> BatchProbe | Failure:
    """Measure a batch of the largest inside site, with the resources of its actor, on a GPU if a node has one."""
    site = max(plan.task.inside, key=lambda site: plan.task.sizes[site]["train"])
    cpus, gpus = config.resources.of(site) if actors else (1.0, 0.0)
    usable = any(node.usable for node in environment.nodes)
    gpus = gpus or float(usable)
    most = max(1.0, *(node.cpus for node in environment.nodes))
    wanted = {1} if usable else {number for number in THREADS if number <= most}
    threads = sorted({*wanted, torch_threads(cpus)})
    return environment.call((plan.task, config.algorithm, config.seed, site, threads, gpus > 0), cpus, gpus)


def _crowded(
    environment: ProbeEnvironment, actors: Sequence[ActorResources], probe: BatchProbe, sites: int
) -> Iterator[Check]:
    """Checks of nodes and GPUs that have too little memory for the client actors that Ray may place on them."""
    cure = "use the resources proposed below, or a smaller task.batch_size"
    for node in environment.nodes if actors and environment.is_local_ray is not None else ():
        capacity = NodeCapacity(NodeResources(node.name, node.cpus, node.gpus))
        count, needed = sum(capacity.take(actor) for actor in actors), probe.memory(sites)
        if count * needed > node.memory:
            each = f"{pluralize(count, 'client actor')} of {format_bytes(needed)} each"
            found = f"{node.name}: Ray may place {each} on this node"
            yield Check("memory", Verdict.WRONG, f"{found}, which has {format_bytes(node.memory)}", cure)
        share = min((actor.gpus for actor in actors if actor.gpus), default=1.0)
        for name, total in dict(node.usable).items():
            if share < 1 and share * total < probe.on_gpu:
                part = f"{share:g} of a {name} is {format_bytes(share * total)}"
                found = f"{node.name}: an actor needs {format_bytes(probe.on_gpu)}; {part}"
                yield Check("GPU memory", Verdict.WRONG, found, cure)


def _table(found: Sequence[Check]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("found", overflow="fold")
    for check in found:
        text = Text(check.found)
        if check.cure:
            text.append(f"\n-> {check.cure}", style=STYLES[check.verdict])
        table.add_row(check.name, Text(check.verdict, STYLES[check.verdict]), text)
    return table


def _report(
    plan: Plan, environment: ProbeEnvironment, actors: Sequence[ActorResources], probe: BatchProbe, display: RunConsole
) -> None:
    """Print the measurements of the batch, and the resources that follow from them."""
    steps = steps_of(plan.config.algorithm, plan.task)
    table = Table(box=SIMPLE_HEAD)
    table.add_column("one batch", no_wrap=True)
    table.add_column("", overflow="fold")
    for row in _measured(plan, steps, actors, probe):
        table.add_row(*row)
    display.console.print(table)
    machines = [_machine(node) for node in environment.nodes if node.facts is not None]
    best = propose_resources(machines, probe, steps, 1 if environment.is_local_ray is None else len(steps))
    if best is None:
        display.say("nothing to propose: no node has the memory for one client actor; use a smaller task.batch_size")
        return
    values = {"client_actors": best.resources.client_actors, "cpus_per_client": best.resources.cpus_per_client}
    values |= {"gpus_per_client": best.resources.gpus_per_client}
    proposed = {
        key: f"{value:g}"
        for key, value in values.items()
        if environment.is_local_ray is not None or key != "client_actors"
    }
    seconds = f"a round of all {pluralize(len(steps), 'inside site')} in about {best.seconds:.2g} s"
    lines = [f"proposed: {seconds}", "", "  " + " ".join(f"resources.{k}={v}" for k, v in proposed.items()), ""]
    lines += ["  resources:", *(f"    {key}: {value}" for key, value in proposed.items())]
    display.console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def _machine(node: NodeReport) -> Machine:
    return Machine(node.cpus, node.memory, len(node.usable), min((total for _, total in node.usable), default=0))


def _measured(
    plan: Plan, steps: Mapping[str, int], actors: Sequence[ActorResources], probe: BatchProbe
) -> Iterator[tuple[str, str]]:
    yield "batch", f"{pluralize(probe.batch, 'example')} of {probe.site}, the largest inside site, on {probe.device}"
    yield "network", f"{probe.parameters:,} parameters, {format_bytes(probe.model)} as a model"
    each = [f"{seconds:.2g} s with {pluralize(count, 'thread')}" for count, seconds in probe.seconds.items()]
    yield "a step", ", ".join(each)
    yield (
        "memory",
        f"{format_bytes(probe.peak)} at most; {format_bytes(probe.imports)} after the imports, before data are opened",
    )
    if probe.device == "cuda":
        yield (
            "GPU memory",
            f"{format_bytes(probe.allocated)} of tensors, {format_bytes(probe.reserved)} reserved by torch",
        )
    if actors:
        cpus = min(actor.cpus for actor in actors)
        site_seconds = round_seconds(probe, {probe.site: steps[probe.site]}, 1, cpus)
        all_seconds = round_seconds(probe, steps, len(actors), cpus)
        yield "this site", f"{pluralize(steps[probe.site], 'step')} in a round, {site_seconds:.2g} s"
        yield (
            "a round",
            f"all {pluralize(len(steps), 'inside site')} with the configured resources, {all_seconds:.2g} s",
        )
