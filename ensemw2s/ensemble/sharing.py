"""One engine for several threads: each brings a list of requests, and all of them share the forward passes.

So the last answers of one list do not leave slots empty: requests of the next list are in them already. There is no
thread of its own; one of the threads that wait takes the steps for all.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from ensemw2s.ensemble.engine import Engine
from ensemw2s.ensemble.requests import Generation, Request, longest_first
from ensemw2s.errors import EnsemW2SError


@dataclass
class _Job:
    """A list of requests on its way."""

    requests: Sequence[Request]
    open: int
    generations: dict[int, Generation] = field(default_factory=dict)
    failed: dict[int, EnsemW2SError] = field(default_factory=dict)
    error: BaseException | None = None

    @property
    def ended(self) -> bool:
        return self.open == 0 or self.error is not None


class SharedEngine:
    """An engine that several threads call.

    Attributes:
        engine: The engine; nobody else may step it.
    """

    def __init__(self, engine: Engine) -> None:
        """Args: an engine with nothing to do."""
        self.engine = engine
        self._changed = threading.Condition()
        self._arrived: deque[_Job] = deque()
        self._stepping = False
        self._keys: dict[int, tuple[_Job, int]] = {}  # of the one who steps

    def run(self, requests: Sequence[Request]) -> tuple[dict[int, Generation], dict[int, EnsemW2SError]]:
        """Decodes requests to their end, along with those of other threads; those that came before go first.

        Args:
            requests: The requests.

        Returns:
            Generations by the index of their request, and what was wrong with those that could not be decoded.

        Raises:
            Exception: What went wrong with one of these requests.
            BaseException: What a step raised, in every thread whose requests were in it; the engine is empty then.
        """
        job = _Job(requests, len(requests))
        with self._changed:
            self._arrived.append(job)
            self._changed.wait_for(lambda: job.ended or not self._stepping)
            if not job.ended:
                self._stepping = True
        if not job.ended:
            self._step_until_end(job)
        if job.error is not None:
            raise job.error
        return job.generations, job.failed

    def _step_until_end(self, job: _Job) -> None:
        """Takes steps for all threads until its own job has ended; then another waiting thread does."""
        try:
            while not job.ended:
                self._submit_arrived()
                if self._keys:
                    self._step()
        except BaseException as error:
            self._fail_all(error)
        finally:
            with self._changed:
                self._stepping = False
                self._changed.notify_all()

    def _submit_arrived(self) -> None:
        while self._arrived:
            job = self._arrived.popleft()
            for i in longest_first(job.requests):
                try:
                    self._keys[self.engine.submit(job.requests[i], "the prompt")] = (job, i)
                except EnsemW2SError as error:
                    job.failed[i] = error
                    self._close(job)

    def _step(self) -> None:
        for update in self.engine.step():
            if update.key not in self._keys:  # of a list that has failed in this step
                continue
            if update.error is not None:
                self._fail(self._keys[update.key][0], update.error)
            elif update.generation is not None:
                job, i = self._keys.pop(update.key)
                job.generations[i] = update.generation
                self._close(job)

    def _close(self, job: _Job) -> None:
        """One request of a job has ended; its thread is told when it was the last."""
        with self._changed:
            job.open -= 1
            if job.ended:
                self._changed.notify_all()

    def _fail(self, job: _Job, error: BaseException) -> None:
        """Ends one job, whose own request an error comes from."""
        for key in [key for key, (other, _) in self._keys.items() if other is job]:
            self.engine.cancel(key)
            del self._keys[key]
        with self._changed:
            job.error = error
            self._changed.notify_all()

    def _fail_all(self, error: BaseException) -> None:
        for key in self._keys:
            self.engine.cancel(key)
        jobs = [job for job, _ in self._keys.values()]
        self._keys = {}
        with self._changed:
            for job in [*jobs, *self._arrived]:
                job.error = error
            self._arrived.clear()
