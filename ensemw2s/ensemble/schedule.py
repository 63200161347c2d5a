"""Which request has which slot: requests come in at any time, rows to read and rows to answer go out.

Apart from the engine because it knows no models: it says when what a slot holds has to be copied, and nothing more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ensemw2s.ensemble.running import Running


class Schedule:
    """Requests in slots, and those that wait for one.

    Slots are filled from 0 on: first the rows with an answer under way, then those whose prompts are being read.

    Attributes:
        rows: The requests that have a slot, in the order of the slots.
        ready: How many of them have been read.
        waiting: Requests without a slot, the next one first.
    """

    def __init__(self, slots: int, chunk: int, copy: Callable[[int, int], None]) -> None:
        """Args: how many slots; prompt tokens that are read at a time; what copies a slot's caches to another."""
        self.slots, self.chunk, self._copy = slots, chunk, copy
        self.rows: list[Running] = []
        self.ready = 0
        self.waiting: deque[Running] = deque()

    @property
    def answering(self) -> list[Running]:
        """Rows that have been read, in slots 0, 1, …."""
        return self.rows[: self.ready]

    @property
    def reading(self) -> list[Running]:
        """Rows that are being read, in the slots from `ready` on."""
        return self.rows[self.ready :]

    def admit(self) -> None:
        """Gives free slots to the next requests, as many as one chunk can read.

        A prompt of more than a chunk is read beside others, one such at a time and in the last slot, so that those that
        come meanwhile are read before it is. Those that wait behind another such prompt overtake it.
        """
        reading = self.reading
        if any(row.unread_prompt for row in reading if not self._is_long(row)):
            return
        long = self.rows.pop() if reading and self._is_long(reading[-1]) else None
        passed: list[Running] = []
        source, taken = len(self.rows), 0
        while self.waiting and len(self.rows) + (long is not None) < self.slots and len(passed) < self.slots:
            row = self.waiting.popleft()
            if self._is_long(row):
                if long is None:
                    long, source = row, -1
                else:
                    passed.append(row)
            elif taken and taken + row.prompt_length > self.chunk:
                passed.append(row)
                break
            else:
                taken += row.prompt_length
                self.rows.append(row)
        self.waiting.extendleft(reversed(passed))
        if long is not None:
            self.rows.append(long)
            if source >= 0:
                self._carry(source, len(self.rows) - 1)

    def finish_reading(self) -> None:
        """Lets the rows whose prompts have been read be answered."""
        while self.ready < len(self.rows) and not self.rows[self.ready].unread_prompt:
            self.ready += 1

    def release(self, slot: int) -> None:
        """Frees a slot: the last row that is being answered takes its place, and one that is being read that one's."""
        if slot < self.ready:
            self.ready -= 1
            self._move(self.ready, slot)
            slot = self.ready
        last = len(self.rows) - 1
        if slot < last - 1 and self._is_long(self.rows[last]):  # it stays behind those that are read before it is
            self._move(last - 1, slot)
            slot = last - 1
        self._move(last, slot)
        self.rows.pop()

    def remove(self, key: int) -> Running | None:
        """Takes a request out, wherever it is; None if there is no such request."""
        for row in self.waiting:
            if row.key == key:
                self.waiting.remove(row)
                return row
        for slot, row in enumerate(self.rows):
            if row.key == key:
                self.release(slot)
                return row
        return None

    def _is_long(self, row: Running) -> bool:
        return row.prompt_length > self.chunk

    def _move(self, source: int, target: int) -> None:
        if source != target:
            self.rows[target] = self.rows[source]
            self._carry(source, target)

    def _carry(self, source: int, target: int) -> None:
        if source != target:
            self._copy(source, target)
