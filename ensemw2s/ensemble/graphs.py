"""Decode steps of a few fixed shapes: tokens of all slots in, a group's logits out, by a recorded pass where that wins.

A step of one token a slot is hundreds of small operations, and a GPU waits for the process that starts them. Recorded
once as a CUDA graph they start together. A record holds for one shape and for the addresses it saw, so slots and keys
are filled up to powers of two, and the cache tells when it has moved.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ensemw2s.ensemble.slots import SlotCache

log = logging.getLogger(__name__)

Pass = Callable[[], torch.Tensor]
OneToken = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]

SHORTEST = 128
"""Keys that the shortest record looks at."""

TRIALS = 5
"""Passes of each way that are timed before one is chosen for a shape."""


@dataclass
class _Step:
    """A step of one shape.

    Attributes:
        ids: `[slots, 1]`, int64, read by the pass.
        positions: The same.
        run: The pass, recorded or not; gives `[members, slots, 1, vocabulary]`.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    run: Pass


def captured(run: Pass, device: torch.device) -> Pass:
    """A pass as a CUDA graph; what it gives is overwritten by the next call.

    Args:
        run: The pass; it reads and writes the same addresses at every call, and may be called any number of times.
        device: The GPU that it runs on.

    Raises:
        RuntimeError: If it does something that cannot be recorded, such as waiting for the device.
    """
    with torch.cuda.device(device):
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries choose their kernels and take memory before anything is recorded
            for _ in range(2):
                run()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = run()

    def replay() -> torch.Tensor:
        graph.replay()
        return output

    return replay


def seconds(run: Pass, device: torch.device) -> float:
    """Least time of a few passes on a GPU."""
    times = []
    for _ in range(TRIALS):
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        run()
        torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return min(times)


class DecodeSteps:
    """Steps of one token a slot.

    Attributes:
        recorded: Shapes (slots, keys) of which a record is used.
    """

    def __init__(
        self,
        cache: SlotCache,
        one_token: OneToken,
        device: torch.device,
        record: Callable[[Pass, torch.device], Pass] = captured,
        cost: Callable[[Pass, torch.device], float] = seconds,
    ) -> None:
        """Args: the cache; the pass (`RowGroup.one_token`); where it runs; what makes a record; what a pass costs."""
        self.recorded: set[tuple[int, int]] = set()
        self._cache, self._one_token, self._device = cache, one_token, device
        self._record, self._cost = record, cost
        self._steps: dict[tuple[int, int], _Step] = {}
        self._moves = cache.moves

    @torch.inference_mode()
    def logits(self, ids: torch.Tensor, starts: Sequence[int]) -> torch.Tensor:
        """Reads one token into each of the first slots; see `Group.logits`.

        Args:
            ids: `[slots, 1]`, int64.
            starts: Tokens that each slot has read before.

        Returns:
            `[members, slots, 1, vocabulary]`; valid until the next call.
        """
        count = len(starts)
        self._cache.reserve(max(starts) + 1)
        if self._moves != self._cache.moves:
            self._steps.clear()
            self.recorded.clear()
            self._moves = self._cache.moves
        slots = min(_power_of_two(count), self._cache.slots)
        length = min(max(SHORTEST, _power_of_two(max(starts) + 1)), self._cache.length)
        # Slots beyond may be those of prompts that are being read. The last place of a slot is never read: an answer's
        # last token is not.
        places = [*starts, *[self._cache.length - 1] * (slots - count)]
        step = self._steps.get((slots, length))
        new = step is None
        if step is None:
            step = self._steps[slots, length] = self._prepare(slots, length)
        step.ids[:count].copy_(ids)
        step.positions.copy_(torch.tensor(places).unsqueeze(-1))
        if new:
            step.run = self._faster(step.run, (slots, length))
        return step.run()[:, :count]

    def _prepare(self, slots: int, length: int) -> _Step:
        ids = torch.zeros((slots, 1), dtype=torch.int64, device=self._device)
        positions = torch.zeros_like(ids)
        return _Step(ids, positions, lambda: self._one_token(ids, positions, length))

    def _faster(self, plain: Pass, shape: tuple[int, int]) -> Pass:
        """The record of a pass, if there can be one and it is the faster way."""
        try:
            record = self._record(plain, self._device)
        except RuntimeError as error:
            log.info("a step of %d slots and %d keys cannot be recorded: %s", *shape, str(error).splitlines()[0])
            return plain
        before, after = self._cost(plain, self._device), self._cost(record, self._device)
        log.info("a step of %d slots and %d keys: %.3g s, recorded %.3g s", *shape, before, after)
        if after >= before:
            return plain
        self.recorded.add(shape)
        return record


def _power_of_two(number: int) -> int:
    """The least one that is not less."""
    return 1 << (number - 1).bit_length()
