"""Contexts as rows of the engine's batch: models of one tokenizer read tokens in slots that can be forked and freed.

The models and their caches are the engine's own groups (`forward`): a fork copies a slot, and all forks of all texts
take one pass. Members of one tokenizer are mixed per token here, as everywhere else.
"""

from __future__ import annotations

import copy
import heapq
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from ensemw2s.ensemble.bytewise.tree import Fork
from ensemw2s.ensemble.combine import combine
from ensemw2s.ensemble.forward import AloneGroup, Group, MemberNetwork, make_groups
from ensemw2s.ensemble.model import EnsembleForCausalLM
from ensemw2s.errors import DataError

CHUNK = 512
"""Tokens of a prompt that are read at a time."""


class ModelRows:
    """The rows of an ensemble of one tokenizer; see `tree.Rows`.

    Attributes:
        model: The ensemble; its rule is `probability`.
        slots: Most rows at a time.
    """

    def __init__(self, model: EnsembleForCausalLM, slots: int) -> None:
        """Args: an ensemble of one tokenizer, one member at least; most rows at a time."""
        self.model, self.slots = model, slots
        self.groups: list[Group] = make_groups([MemberNetwork(*part) for part in model.parts()], slots)
        self._order = torch.tensor(np.argsort([member for group in self.groups for member in group.members]))
        self._free = list(range(slots))  # a heap: low slots first, so that a pass covers few that are free
        self._read = [0] * slots
        temperatures = model.temperatures or [1.0] * model.num_members
        self._temperatures = torch.tensor(temperatures).view(-1, 1, 1)

    def start(self, ids: Sequence[int]) -> tuple[int, np.ndarray]:
        """Reads a prompt into a free row.

        Returns:
            The row, and `[vocabulary]`, float64: p(next token).

        Raises:
            DataError: If the prompt is empty, or does not fit into the models' context.
        """
        if not ids:
            raise DataError("a prompt has no tokens; expected at least one, for example the tokenizer's BOS")
        if self.model.context is not None and len(ids) > self.model.context:
            raise DataError(
                f"a prompt has {len(ids)} tokens, {self.model.names[0]} reads up to {self.model.context}; shorten it"
            )
        slot = heapq.heappop(self._free)
        *before, last = ids
        for at in range(0, len(before), CHUNK):
            part = before[at : at + CHUNK]
            for group in self.groups:
                group.read(torch.tensor([part]), [at], [len(part)], slot)
        self._read[slot] = len(before)
        return slot, self._step({slot: last})[0]

    def extend(self, forks: Sequence[Fork], gone: Sequence[int]) -> list[tuple[int, np.ndarray]]:
        """Reads one more token in a copy of a row, for all forks in one pass, and frees the rows that are gone.

        A row that is gone is used for the last of its forks, without a copy.

        Returns:
            Row and p(next token) of each fork.
        """
        left = Counter(fork.row for fork in forks)
        self.free([row for row in gone if not left[row]])
        tokens: dict[int, int] = {}
        for fork in forks:
            left[fork.row] -= 1
            slot = fork.row
            if left[fork.row] or fork.row not in gone:
                slot = heapq.heappop(self._free)
                self._copy(fork.row, slot)
            tokens[slot] = fork.token
        if not tokens:
            return []
        return list(zip(tokens, self._step(tokens), strict=True))

    def free(self, rows: Sequence[int]) -> None:
        """Frees rows of a text that is done."""
        for row in rows:
            heapq.heappush(self._free, row)

    def full(self, row: int) -> bool:
        """Whether a row has no room for another token."""
        return self.model.context is not None and self._read[row] >= self.model.context

    def _copy(self, source: int, target: int) -> None:
        self._read[target] = self._read[source]
        for group in self.groups:
            if isinstance(group, AloneGroup):  # whose `move` gives the cache away
                group.caches[target] = copy.deepcopy(group.caches[source])
            else:
                group.move(source, target)

    @torch.inference_mode()
    def _step(self, tokens: dict[int, int]) -> list[np.ndarray]:
        """One token into each of some slots; p(next token) of each, in their order."""
        first, last = min(tokens), max(tokens)
        window = range(first, last + 1)
        ids = torch.tensor([[tokens.get(slot, 0)] for slot in window])
        counts = [int(slot in tokens) for slot in window]
        starts = [self._read[slot] for slot in window]
        chosen = torch.tensor([slot - first for slot in tokens])
        parts = [
            group.logits(ids, starts, counts, first)[:, :, 0].cpu().index_select(1, chosen).double()
            for group in self.groups
        ]
        for slot in tokens:
            self._read[slot] += 1
        logits = torch.cat(parts).index_select(0, self._order) / self._temperatures
        if self.model.num_members == 1:
            return list(logits[0].softmax(-1).numpy())
        return list(combine(logits.log_softmax(-1), self.model.weights, "probability").double().softmax(-1).numpy())
