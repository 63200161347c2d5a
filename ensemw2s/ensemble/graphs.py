"""Decode steps of a few fixed shapes: tokens of all slots in, a group's logits out, by a recorded pass where that wins.

A step of one token a slot is hundreds of small operations, and a GPU waits for the process that starts them. Recorded
once as a CUDA graph they start together. A record holds for one shape and for the addresses it saw, so slots and keys
are filled up to powers of two, and the cache tells when it has moved.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
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

PATIENCE = 16
"""Steps of a shape before it is recorded, which costs about as many: a short list of prompts is not made slower."""

_broken: list[torch.cuda.CUDAGraph] = []
"""Graphs whose recording failed: PyTorch's allocators may still point to them."""


@dataclass
class _Step:
    """A step of one shape.

    Attributes:
        ids: `[slots, 1]`, int64, read by the record.
        positions: The same.
        uses: How often it came up.
        tried: Whether it was decided if there is a record.
        record: The recorded pass, if it is used; gives `[members, slots, 1, vocabulary]`.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    uses: int = 0
    tried: bool = False
    record: Pass | None = None


def captured(run: Pass, device: torch.device) -> Pass:
    """A pass as a CUDA graph; what it gives is overwritten by the next call.

    Args:
        run: The pass; it reads and writes the same addresses at every call, and may be called any number of times.
        device: The GPU that it runs on.

    Raises:
        RuntimeError: If it does something that cannot be recorded, such as waiting for the device.
    """
    with torch.cuda.device(device):
        before = torch.cuda.current_stream()
        aside = torch.cuda.Stream()
        aside.wait_stream(before)
        with torch.cuda.stream(aside):  # libraries choose their kernels and take memory before anything is recorded
            for _ in range(2):
                run()
        before.wait_stream(aside)
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        try:
            # The stream is given because torch's own is one for all devices, that of the first to record: what runs on
            # another GPU would not be recorded at all. And other threads may wait for the device meanwhile.
            with torch.cuda.graph(graph, pool=pool, stream=aside, capture_error_mode="thread_local"):
                output = run()
        except BaseException:
            _give_up(graph, pool)
            raise
        finally:
            torch.cuda.set_stream(before)  # torch leaves its stream in place where the end of a recording fails
        output.zero_()
        graph.replay()
        if not bool(output.any()):
            raise RuntimeError("nothing was recorded")

    def replay() -> torch.Tensor:
        graph.replay()
        return output

    return replay


def _give_up(graph: torch.cuda.CUDAGraph, pool: tuple[int, int]) -> None:
    """Ends what a failed recording began: torch would send no cached memory back to the device from then on."""
    _broken.append(graph)
    with suppress(Exception):  # nothing to end if it was ended properly
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)


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
    """Steps of one token per slot.

    Attributes:
        recorded: Shapes (slots, keys) of which a record is used.
        given_up: Whether recording failed once; it is not tried again, and every pass is a plain one.
    """

    def __init__(
        self,
        cache: SlotCache,
        one_token: OneToken,
        device: torch.device,
        record: Callable[[Pass, torch.device], Pass] = captured,
        cost: Callable[[Pass, torch.device], float] = seconds,
        patience: int = PATIENCE,
    ) -> None:
        """Args: the cache; the pass (`RowGroup.one_token`); where it runs; what makes a record; what a pass costs; how
        many steps of a shape there are before it is recorded.
        """
        self.recorded: set[tuple[int, int]] = set()
        self.given_up = False
        self._patience = patience
        self._cache, self._one_token, self._device = cache, one_token, device
        self._record, self._cost = record, cost
        self._steps: dict[tuple[int, int], _Step] = {}
        self._moves = cache.moves

    def forget(self) -> None:
        """Drops all records, whose addresses are going to be wrong, and gives back their memory."""
        self._steps.clear()
        self.recorded.clear()

    @torch.inference_mode()
    def logits(self, ids: torch.Tensor, starts: Sequence[int], plain: Pass) -> torch.Tensor:
        """Reads one token into each of the first slots; see `Group.logits`.

        Args:
            ids: `[slots, 1]`, int64.
            starts: Tokens that each slot has read before.
            plain: The same without a record, for exactly these slots and keys.

        Returns:
            `[members, slots, 1, vocabulary]`; valid until the next call.
        """
        if self.given_up:
            return plain()
        count = len(starts)
        self._cache.reserve(max(starts) + 1)
        if self._moves != self._cache.moves:
            self.forget()
            self._moves = self._cache.moves
        slots = min(_power_of_two(count), self._cache.slots)
        length = min(max(SHORTEST, _power_of_two(max(starts) + 1)), self._cache.length)
        shape = (slots, length)
        step = self._steps.get(shape)
        if step is None:
            zeros = torch.zeros((slots, 1), dtype=torch.int64, device=self._device)
            step = self._steps[shape] = _Step(zeros, torch.zeros_like(zeros))
        step.uses += 1
        if step.uses <= self._patience or (step.tried and step.record is None):
            return plain()
        # Slots beyond may be those of prompts that are being read. The last place of a slot is never read: an answer's
        # last token is not.
        places = [*starts, *[self._cache.length - 1] * (slots - count)]
        step.ids[:count].copy_(ids)
        step.positions.copy_(torch.tensor(places).unsqueeze(-1))
        if not step.tried:
            step.record, step.tried = self._faster(step, plain, shape), True
        return step.record()[:, :count] if step.record is not None else plain()

    def _faster(self, step: _Step, plain: Pass, shape: tuple[int, int]) -> Pass | None:
        """The record of a step, if there can be one and it is faster than the plain pass that it stands for."""
        ids, positions, length = step.ids, step.positions, shape[1]
        try:
            record = self._record(lambda: self._one_token(ids, positions, length), self._device)
        except RuntimeError as error:
            self.given_up = True
            self.forget()
            said = str(error).splitlines()[0]
            log.warning("decoding goes on without CUDA graphs, which is slower and gives the same answers: %s", said)
            return None
        before, after = self._cost(plain, self._device), self._cost(record, self._device)
        log.info("a step of %d slots and %d keys: %.3g s, recorded %.3g s", *shape, before, after)
        if after >= before:
            return None
        self.recorded.add(shape)
        return record


def _power_of_two(number: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << (number - 1).bit_length()
