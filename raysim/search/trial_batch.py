"""An actor that runs several trials of a search in one process. Their networks train in one batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from raysim.search.spec import SearchSpec
from raysim.search.trainable import check_gpu_share, prepare_process
from raysim.search.trial_cache import TrialCache
from raysim.search.trial_runner import TrialRounds, unfit_node_result
from raysim.training.site_batch import advance_together

ROUND_TIMEOUT_S = 10.0  # seconds after which a round starts without the trials that have not requested it


class TrialBatch:
    """Up to `capacity` trials in one process. In a round of the batch, each trial advances by one round.

    A round starts when all trials have requested it, the first one when `capacity` trials have. After ROUND_TIMEOUT_S
    it starts without the trials that have not, such as a trial whose process of Tune was lost. A trial leaves when it
    has ended or when the scheduler has stopped it.
    """

    def __init__(self, spec: SearchSpec, capacity: int, gpu_share: float) -> None:
        prepare_process(spec)
        self.spec, self.capacity, self.missing = spec, capacity, capacity
        self.members, self.trials = set[int](), dict[int, TrialRounds]()
        self.asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.is_running = False
        self.thread = ThreadPoolExecutor(1)  # for all work of the trials, so that the actor can answer
        self.cannot_run = spec.node_incompatibility() or check_gpu_share(spec, gpu_share)
        self.cache = None if self.cannot_run else TrialCache(spec)

    async def join(self, number: int, values: Mapping[str, Any]) -> bool:
        """Start trial `number`, or continue it from its last checkpoint. False if this batch is full."""
        if len(self.members - {number}) >= self.capacity:
            return False
        await self.leave(number)
        self.members.add(number)
        if self.cache is not None:
            self.trials[number] = await self._run(partial(TrialRounds, self.spec, number, values, self.cache))
            self.missing -= 1
        return True

    async def step(self, number: int) -> dict[str, Any]:
        """The metrics of the next round of the trial. Raises KeyError for a trial that has not joined."""
        if self.cannot_run:
            return unfit_node_result(self.cannot_run)
        if number not in self.trials:  # this actor has been restarted, so the trial has to join again
            raise KeyError(number)
        loop = asyncio.get_running_loop()
        answer = loop.create_future()
        self.asked[number] = answer
        self._start_round()
        timer = loop.call_later(ROUND_TIMEOUT_S, self._start_round, False)
        try:
            row: dict[str, Any] = await answer
        finally:
            timer.cancel()
        return row

    async def leave(self, number: int) -> None:
        """End the trial; its recorded rounds stay on disk."""
        self.members.discard(number)
        if trial := self.trials.pop(number, None):
            self.asked.pop(number, None)
            await self._run(trial.close)
            self._start_round()

    def _start_round(self, of_all: bool = True) -> None:
        """Start a round if none is running: of all trials if all have asked for it, or of those that have."""
        ready = self.asked.keys() == self.trials.keys() and self.missing <= 0 if of_all else True
        if self.asked and ready and not self.is_running:
            self.is_running, self.missing = True, 0
            asked, self.asked = dict(sorted(self.asked.items())), {}
            self._round = asyncio.ensure_future(self._advance(asked))

    async def _advance(self, asked: Mapping[int, asyncio.Future[dict[str, Any]]]) -> None:
        steps: Sequence[Callable[[], dict[str, Any]]] = [self.trials[number].step for number in asked]
        found = await self._run(partial(advance_together, steps))
        for answer, row in zip(asked.values(), found, strict=True):
            if isinstance(row, Exception):
                answer.set_exception(row)
            else:
                answer.set_result(row)
        self.is_running = False
        self._start_round()

    async def _run(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.thread, work)
