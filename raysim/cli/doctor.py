"""`raysim doctor`: looks at Ray, the nodes and the data, tries one batch, and proposes `resources`."""

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
from raysim.core.formatting import counted, size
from raysim.distributed import diagnostics, node_probe
from raysim.distributed.autoscaling import coming
from raysim.distributed.batch_probe import THREADS, Machine, Probe, proposal, round_seconds, steps_of
from raysim.distributed.capacity_checks import check_store
from raysim.distributed.diagnostics import Check, Seen
from raysim.distributed.probe_environment import PATIENCE, Surroundings, surroundings
from raysim.distributed.resources import Node, Room, Seat, seats
from raysim.federation.plan import Plan, prepare
from raysim.federation.site_executor import Failure, threads_of
from raysim.reporting.console import Display
from raysim.storage.run_directory import runs

FAILED = "a run would fail in the same way; if it was out of memory, a smaller task.batch_size takes less"
STYLES = {"ok": "green", "note": "yellow", "wrong": "bold red"}


def doctor(config: RunConfig, out: str | None, display: Display) -> int:
    """Print what was found, what a batch takes and what to ask for; the exit code.

    0 if nothing is wrong, 3 if what is configured cannot be placed, 1 if something else is wrong.
    Raises ConfigError for a wrong configuration, PlacementError where Ray cannot be had.
    """
    folder = Path(out).absolute() if out else runs()
    plan = prepare(config, Path(node_probe.existing(str(folder))), display)
    read, written = diagnostics.data_paths(plan.task, config.task)
    display.say("looking at this machine" if config.fleet == "local" else "starting Ray, asking the nodes")
    with surroundings(config, read, written) as where:
        given, placed = _placed(config, plan, where)
        found = [*_checks(where, folder, read, written), placed, *_stored(plan, where)]
        probe: Probe | Failure | None = None
        if placed.verdict != "note":  # else there is no room yet
            display.say(f"trying a batch, for {PATIENCE:g} s at most")
            probe = _probe(config, plan, where, given)
    if isinstance(probe, Failure):
        found.append(Check("batch", "wrong", probe.cause, FAILED))
    elif probe is not None:
        found += _crowded(where, given, probe, len(plan.task.inside))
    display.console.print(_table(found))
    if isinstance(probe, Probe):
        _report(plan, where, given, probe, display)
    if placed.verdict == "wrong":
        return PlacementError.exit_code
    return int(any(check.verdict == "wrong" for check in found))


def _checks(where: Surroundings, folder: Path, read: Sequence[str], written: Sequence[str]) -> Iterator[Check]:
    facts = diagnostics.answered(where.seen)
    yield where.check
    yield from diagnostics.of_nodes(where.seen)
    yield from diagnostics.of_gpus(where.seen)
    yield from diagnostics.of_versions(facts, node_probe.versions())
    if where.own is not None:
        yield from diagnostics.of_listening(facts, where.own)
        yield diagnostics.of_token(os.environ, Path.home(), where.open_to_all)
        yield from diagnostics.of_disks(where.seen)
    yield diagnostics.of_folder(folder)
    yield from diagnostics.of_paths(facts, read, written)


def _placed(config: RunConfig, plan: Plan, where: Surroundings) -> tuple[list[Seat], Check]:
    """The client actors that a run would start, none if they cannot be placed, and what is to be said of them."""
    resources, task = config.resources, plan.task
    nodes = [Node(seen.name, seen.cpus, seen.gpus) for seen in where.seen]
    if where.own is None:  # one process plays all sites, with any number of threads
        nodes = [replace(each, cpus=math.inf) for each in nodes]
        resources = replace(resources, clients=1, sites={})
    try:
        given = seats(resources, task.inside, nodes, task.outside)
    except PlacementError as error:
        more = coming() if where.own is False else []
        with suppress(PlacementError):
            many = len(seats(resources, task.inside, [*nodes, *more], task.outside))
            if more:
                asked = f"no room for {counted(many, 'client actor')} yet: a run asks the autoscaler for nodes"
                return [], Check("resources", "note", f"{asked}, of which {len(more)} more may come; no batch is tried")
        return [], Check("resources", "wrong", str(error))
    if where.own is None:
        threads = counted(threads_of(resources.cpus_per_client), "torch thread")
        return given, Check("resources", "ok", f"all sites in this process, {threads}")
    kinds = Counter((seat.cpus, seat.gpus) for seat in given)
    each = [f"{counted(count, 'client actor')} of {cpus:g} CPU, {gpus:g} GPU" for (cpus, gpus), count in kinds.items()]
    return given, Check("resources", "ok", ", ".join(each))


def _stored(plan: Plan, where: Surroundings) -> Iterator[Check]:
    """Whether a round's models fit into Ray's object store."""
    if where.own is None:
        return
    try:
        yield from (Check("object store", "note", note.text) for note in check_store(plan))
    except PlacementError as error:
        yield Check("object store", "wrong", str(error))


def _probe(config: RunConfig, plan: Plan, where: Surroundings, given: Sequence[Seat]) -> Probe | Failure:
    """A batch of the largest inside site, with what a run would give its actor, or on a GPU where there is one."""
    site = max(plan.task.inside, key=lambda site: plan.task.sizes[site]["train"])
    cpus, gpus = config.resources.of(site) if given else (1.0, 0.0)
    usable = any(seen.usable for seen in where.seen)
    gpus = gpus or float(usable)
    most = max(1.0, *(seen.cpus for seen in where.seen))
    wanted = {1} if usable else {number for number in THREADS if number <= most}
    threads = sorted({*wanted, threads_of(cpus)})
    return where.call((plan.task, plan.algorithm, plan.seed, site, threads, gpus > 0), cpus, gpus)


def _crowded(where: Surroundings, given: Sequence[Seat], probe: Probe, sites: int) -> Iterator[Check]:
    """Nodes and GPUs whose memory is too small for the client actors that Ray may put there."""
    cure = "ask for what is proposed below, or for smaller batches (task.batch_size)"
    for seen in where.seen if given and where.own is not None else ():
        room = Room(Node(seen.name, seen.cpus, seen.gpus))
        here = sum(room.take(seat) for seat in given)
        if here * probe.memory(sites) > seen.memory:
            found = f"{seen.name}: {counted(here, 'client actor')} of {size(probe.memory(sites))} each would come here"
            yield Check("memory", "wrong", f"{found}, which has {size(seen.memory)}", cure)
        share = min((seat.gpus for seat in given if seat.gpus), default=1.0)
        for name, total in dict(seen.usable).items():
            if share < 1 and share * total < probe.on_gpu:
                found = (
                    f"{seen.name}: an actor needs {size(probe.on_gpu)}; {share:g} of a {name} is {size(share * total)}"
                )
                yield Check("GPU memory", "wrong", found, cure)


def _table(found: Sequence[Check]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("found", overflow="fold")
    for check in found:
        said = Text(check.found)
        if check.cure:
            said.append(f"\n-> {check.cure}", style=STYLES[check.verdict])
        table.add_row(check.name, Text(check.verdict, STYLES[check.verdict]), said)
    return table


def _report(plan: Plan, where: Surroundings, given: Sequence[Seat], probe: Probe, display: Display) -> None:
    """What a batch took, and the resources to ask for."""
    steps = steps_of(plan.algorithm, plan.task)
    table = Table(box=SIMPLE_HEAD)
    table.add_column("one batch", no_wrap=True)
    table.add_column("", overflow="fold")
    for row in _measured(plan, steps, given, probe):
        table.add_row(*row)
    display.console.print(table)
    machines = [_machine(seen) for seen in where.seen if seen.facts is not None]
    best = proposal(machines, probe, steps, 1 if where.own is None else len(steps))
    if best is None:
        display.say("nothing to propose: no node has the memory for one client actor; ask for smaller batches")
        return
    values = {"clients": best.resources.clients, "cpus_per_client": best.resources.cpus_per_client}
    values |= {"gpus_per_client": best.resources.gpus_per_client}
    asked = {key: f"{value:g}" for key, value in values.items() if where.own is not None or key != "clients"}
    seconds = f"a round of all {counted(len(steps), 'inside site')} in about {best.seconds:.2g} s"
    lines = [f"proposed: {seconds}", "", "  " + " ".join(f"resources.{k}={v}" for k, v in asked.items()), ""]
    lines += ["  resources:", *(f"    {key}: {value}" for key, value in asked.items())]
    display.console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def _machine(seen: Seen) -> Machine:
    return Machine(seen.cpus, seen.memory, len(seen.usable), min((total for _, total in seen.usable), default=0))


def _measured(plan: Plan, steps: Mapping[str, int], given: Sequence[Seat], probe: Probe) -> Iterator[tuple[str, str]]:
    yield "of", f"{counted(probe.batch, 'example')} of {probe.site}, the largest inside site, on {probe.device}"
    yield "network", f"{probe.parameters:,} parameters, {size(probe.model)} as a model"
    each = [f"{seconds:.2g} s with {counted(count, 'thread')}" for count, seconds in probe.seconds.items()]
    yield "a step", ", ".join(each)
    yield "memory", f"{size(probe.peak)} at most, of which {size(probe.imports)} before anything is opened"
    if probe.device == "cuda":
        yield "GPU memory", f"{size(probe.allocated)} by tensors, {size(probe.reserved)} by torch"
    if given:
        cpus = min(seat.cpus for seat in given)
        alone = round_seconds(probe, {probe.site: steps[probe.site]}, 1, cpus)
        whole = round_seconds(probe, steps, len(given), cpus)
        yield "this site", f"{counted(steps[probe.site], 'step')} in a round, {alone:.2g} s"
        yield "a round", f"of all {counted(len(steps), 'inside site')} with the resources now asked for: {whole:.2g} s"
