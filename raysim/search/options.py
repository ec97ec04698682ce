"""The options of a search, for `raysim tune` and `raysim.tune`. Does not import Ray, because the parser needs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from annotated_types import Ge, Gt

from raysim.config.schema import TrackerName

SchedulerName = Literal["fifo", "asha", "hyperband", "pbt", "median"]
SamplerName = Literal["random", "grid", "tpe", "gp", "cmaes", "nsgaii"]
OPTUNA_SAMPLERS: tuple[SamplerName, ...] = ("tpe", "gp", "cmaes", "nsgaii")
StopRule = Literal["never", "auto"]
CheckpointRetention = Literal["best", "all"]
ComparedRound = Literal["best", "last"]
FailedFederations = Literal["fail", "leave-out"]
ResumeOption = Literal["trials", "budget", "stop", "max_concurrent", "keep_checkpoints", "tracker"]
RESUME_OPTIONS: tuple[ResumeOption, ...] = get_args(ResumeOption)  # the options that `--resume` may change


def option_name(field: str) -> str:
    """The name of an option on the command line."""
    return f"--{field.replace('_', '-')}"


RESUMABLE = ", ".join(map(option_name, RESUME_OPTIONS))  # as in messages


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How a search samples, schedules, compares and stores its trials."""

    trials: Annotated[int, Gt(0), "number of trials; a grid determines it"] = 16
    metric: Annotated[str | None, "the objectives, separated by commas: worst, outside, bytes, ..."] = None
    judge: Annotated[
        ComparedRound, "the round of a trial that is compared: the best by its validation score, or the last"
    ] = "best"
    scheduler: Annotated[SchedulerName, "the scheduler, which stops trials early or changes them"] = "fifo"
    searcher: Annotated[SamplerName, "the sampler, which draws the values of a trial"] = "random"
    warm_start: Annotated[
        str | None, "the directory of a search over the same space, whose trials the sampler learns from"
    ] = None
    stop: Annotated[StopRule, "auto: start no new trial when the best value no longer improves"] = "never"
    max_concurrent: Annotated[int | None, Gt(0), "concurrent trials; by default as many as fit"] = None
    seeds: Annotated[int, Gt(0), "seeds of each trial; the objective is their mean"] = 1
    holdout: Annotated[str | None, "a site that does not train and is evaluated; 'each' holds out every site once"] = (
        None
    )
    folds: Annotated[int | None, Ge(2), "folds of each trial (task.data.folds); the objective is their mean"] = None
    failed_federations: Annotated[
        FailedFederations, "if a federation of a trial fails twice: fail the trial, or compare the other federations"
    ] = "fail"
    keep_checkpoints: Annotated[CheckpointRetention, "the ended trials whose last checkpoints are kept"] = "best"
    tracker: Annotated[TrackerName | None, "an experiment tracker that also records the trials"] = None
    budget: Annotated[float | None, Ge(0), "seconds from the start of the first trial to the end of the search"] = None
