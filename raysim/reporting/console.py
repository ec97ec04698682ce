"""Console output of a run: a line per round, a progress bar in a terminal, tables of the sites at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress as Bars, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from raysim.core.events import ActorsPlaced, Event, Message, Notice, Progress, RoundEvent, RunFinished, RunPlanned
from raysim.core.formatting import format_bytes, format_score, pluralize, quote_path

WIDTH = 11  # characters of a column of numbers
MAX_SITES_SHOWN = 40  # sites in the table at the end; if there are more, the worst are shown


class RunConsole:
    """Prints the events of a run to `console`, with a progress bar if it is a terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.plan: RunPlanned | None = None
        self.bars: Bars | None = None
        self.task: TaskID | None = None
        self.placed = False
        self.steps = {Progress().phase}  # of the start, those that were shown

    def say(self, text: str) -> None:
        """Print one line."""
        self.console.print(text, style="dim", highlight=False, markup=False, soft_wrap=True)

    def _bars(self) -> Bars:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        return Bars(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)

    @contextmanager
    def live(self) -> Iterator[None]:
        """During the block, a progress bar is shown at the bottom of a terminal."""
        with self._bars() as self.bars:
            self.task = self.bars.add_task("starting", total=None)
            yield
        self.bars = None

    def show(self, event: Event) -> None:
        """Show one event of the run: the callback of `raysim.run`."""
        if isinstance(event, Progress):
            self._progress(event)
        elif isinstance(event, Message):
            self.say(event.text)
        elif isinstance(event, RunPlanned):
            self._start(event)
        elif isinstance(event, ActorsPlaced):
            self._placed(event)
        elif isinstance(event, Notice):
            self.console.print(f"note: {event.text}", style="yellow", highlight=False, markup=False, soft_wrap=True)
        elif isinstance(event, RoundEvent):
            self._row(event.values)
        elif isinstance(event, RunFinished):
            self._finish(event.values)

    def _start(self, plan: RunPlanned) -> None:
        self.plan = plan
        if self.bars is not None and self.task is not None:  # a new bar, to restart its clock
            self.bars.remove_task(self.task)
            self.task = self.bars.add_task("starting", total=None)

    def _progress(self, progress: Progress) -> None:
        """Update the bar. Without a terminal, print a line per step of the start, between Ray's and the actors'."""
        if not self.console.is_terminal:
            self._print_step(progress.phase)
        if self.bars is None or self.task is None:
            return
        text = progress.phase
        if progress.total and self.plan is not None and self.placed:
            text = f"round {progress.round + 1}/{self.plan.rounds}  {progress.phase}"
        self.bars.update(self.task, description=text, completed=progress.done, total=progress.total or None)

    def _print_step(self, phase: str) -> None:
        step = phase.partition(":")[0]  # text that changes often may follow
        if self.plan is not None and not self.placed and step not in self.steps:
            self.steps.add(step)
            self.say(phase)

    def _placed(self, placed: ActorsPlaced) -> None:
        if self.placed:  # an actor has moved; a notice has reported it
            return
        self.placed = True
        sites = list(placed.site_to_actor)
        if not placed.places:
            self.say(f"{len(sites)} sites in this process")
            return
        actors = pluralize(len(placed.places), "client actor")
        self.say(f"{pluralize(len(sites), 'site')} on {actors}; the data of each site are opened in the first round")
        for place in placed.places[:MAX_SITES_SHOWN]:
            gpu = f", {place.gpus:g} of GPU {','.join(place.gpu_ids)} ({place.device})" if place.gpus else ""
            self.say(f"  {place.title}  node {place.node[:8]}, {place.threads} torch thread(s){gpu}")

    def _row(self, row: Any) -> None:
        assert self.plan is not None
        rounds, metric = self.plan.rounds, self.plan.metric
        parts = [f"round {row['round']:{len(str(rounds))}}/{rounds}"]
        parts.append("loss " + (f"{row['loss']:.4f}" if row["loss"] is not None else "-"))
        if f"{metric}/mean" in row:
            parts.append(f"{metric} {row[f'{metric}/mean']:.4f} (worst {row[f'{metric}/worst']:.4f})")
        parts.append(f"{row['seconds']:.2f} s")
        traffic = {"up": row["bytes_up"], "down": row["bytes_down"], "between": row["bytes_between"]}
        parts += [f"{name} {format_bytes(count)}" for name, count in traffic.items() if count or name != "between"]
        self.console.print("  ".join(parts), highlight=False, soft_wrap=True)

    def _finish(self, values: Mapping[str, Any]) -> None:
        """Print the tables of the sites and the paths of the results."""
        assert self.plan is not None
        folder = self.plan.directory
        for table in site_tables(values, self.console.width):
            self.console.print(table)
        for note in values["notes"]:
            self.console.print(f"note: {note}", style="yellow", highlight=False, markup=False, soft_wrap=True)
        self.say(describe_best(values))
        total, rounds = values["bytes"], pluralize(values["rounds"], "round")
        self.say(
            f"{rounds} in {values['seconds']:.1f} s; up {format_bytes(total['up'])}, "
            f"down {format_bytes(total['down'])}, between sites {format_bytes(total['between_sites'])}"
        )
        self._failures(values["failures"], folder)
        self.say(f"digest {values['digest']}")
        self.say(f"results: {folder}")
        self.say(f"curves:  tensorboard --logdir {quote_path(folder)}")
        self.say(f"rerun:   raysim run -c {quote_path(folder / 'config.yaml')}")

    def _failures(self, failures: Any, folder: Path) -> None:
        """Print the totals of the failures, if there were any."""
        if failures["incidents"]:
            left_out = failures["left_out"]
            replies = f", {left_out} {'reply' if left_out == 1 else 'replies'} left out" if left_out else ""
            lost = f"{failures['seconds_lost']:.1f} s of work lost"
            self.say(f"{pluralize(failures['incidents'], 'failure')}{replies}, {lost}: see {folder / 'failures.jsonl'}")


def describe_best(summary: Mapping[str, Any]) -> str:
    """The scores of the best and of the last round on val and test cases, or the reason why there is no best round."""
    best = summary["best"]
    if best["round"] is None:
        return f"no best round: {best['reason']}"
    role, _, metric = best["metric"].split("/", 2)
    names = [name for name in (best["metric"], f"{role}/test/{metric}") if name in best["metrics"]]
    of_best, of_last = (
        ", ".join(f"{name} {format_score(metrics.get(name, {}).get('mean'))}" for name in names)
        for metrics in (best["metrics"], summary["metrics"])
    )
    return f"best round {best['round']}: {of_best}; last evaluated round {summary['evaluated_round']}: {of_last}"


UNITS = {"hd95": "mm", "asd": "mm"}


def site_tables(summary: Any, width: int) -> Iterator[Table]:
    """The last scores of the sites as tables that fit `width`, the test split first; with many sites, of the worst."""
    sites, metric = summary["sites"], summary["metric"].split("/", 1)[1]
    rows, title = sorted(sites, key=lambda s: (sites[s]["role"], s)), None
    if len(rows) > MAX_SITES_SHOWN:
        sign = 1 if summary["direction"] == "higher" else -1
        rows = sorted(rows, key=lambda s: sign * sites[s].get(metric, sign * float("inf")))[:MAX_SITES_SHOWN]
        title = f"the {MAX_SITES_SHOWN} worst of {len(sites)} sites by {metric}"
    # Columns in the order of the task: a site without a class lacks columns, so the site with most metrics is first.
    complete = sorted(sites.values(), key=len, reverse=True)
    names = [n for n in dict.fromkeys(n for scores in complete for n in scores) if not equals_global(n, sites)]
    fit = max(1, (width - max(map(len, rows)) - 14) // WIDTH)
    for split in ("test", "val"):
        shown = [name for name in names if name.startswith(f"{split}/")]
        for start in range(0, len(shown), fit):
            yield _table(title, rows, shown[start : start + fit], summary)


def _table(title: str | None, rows: list[str], names: list[str], summary: Any) -> Table:
    sites = summary["sites"]
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in ("site", "role"):
        table.add_column(column, no_wrap=True)
    for name in names:
        table.add_column(column_heading(name), justify="right", min_width=WIDTH - 3)
    for site in rows:
        table.add_row(site, sites[site]["role"], *(format_score(sites[site].get(name)) for name in names))
    table.add_section()
    for role in ("inside", "outside"):
        means = [summary["metrics"].get(f"{role}/{name}", {}).get("mean") for name in names]
        if any(mean is not None for mean in means):
            table.add_row("mean", role, *map(format_score, means), style="bold")
    return table


def column_heading(name: str) -> str:
    """`split/metric` on several lines, with the unit if the metric has one."""
    parts = name.replace("/", "_").split("_")
    unit = UNITS.get(parts[1].removesuffix("@global"))
    return "\n".join([*parts, unit] if unit else parts)


def equals_global(name: str, sites: Any) -> bool:
    """Whether the scores `name` of the global model equal those of the method's predictor at every site."""
    plain = name.removesuffix("@global")
    return plain != name and all(scores.get(name) == scores.get(plain) for scores in sites.values())
