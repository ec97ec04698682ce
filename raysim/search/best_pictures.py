"""The pictures of the best trial, for the report of a search. Trials write none themselves."""

from __future__ import annotations

from raysim.federation.continuation import with_kept_weights
from raysim.federation.run_pictures import draw_pictures
from raysim.federation.trained_run import open_run
from raysim.search.results import SearchResults
from raysim.storage.picture_files import PICTURES, PICTURES_FILE


def draw_best_trial(results: SearchResults) -> None:
    """Write pictures/ of the best trial, or of its first federation, if the trial is done and has none.

    Raises ConfigError if its checkpoint is missing, and the error of a method that cannot predict in this process.
    """
    record = next(iter(results.best()), None)
    if record is None or not record.done:
        return
    directory = next(iter(results.run_directories(record).values()))
    if (directory / PICTURES / PICTURES_FILE).exists():  # written last
        return
    run, spec = open_run(directory), results.spec
    shared = spec.task if run.config.task == spec.task_config else None
    draw_pictures(run, shared or with_kept_weights(run.config.task, directory).build())
