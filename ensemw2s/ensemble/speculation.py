"""Drafts: cheap guesses of the next tokens, which the ensemble checks in one pass. Never a change of what comes out.

The ensemble's own choice of a token is a function of what lies before it and of the row's random number for that place
(`sampling`). A guess is kept if it equals that choice, so greedy and sampled answers are the same, token by token, with
speculation and without; a draft only changes how many come out of a pass.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Protocol

import numpy as np
import torch

from ensemw2s.config import LabelingConfig
from ensemw2s.ensemble.forward import Group, MemberNetwork, RowGroup, make_groups, padded
from ensemw2s.ensemble.model import EnsembleForCausalLM
from ensemw2s.ensemble.running import Running
from ensemw2s.ensemble.sampling import choose
from ensemw2s.errors import ConfigError
from ensemw2s.models.loading import load_causal_lm, logits_vocabulary

log = logging.getLogger(__name__)

NGRAM, MEMBER = "ngram", "member"
LONGEST_NGRAM = 3

CATCH_UP = 64
"""Tokens of a slot that a draft model of its own reads at a time when it has fallen behind."""

TRIAL = 8
"""Steps after which the pace of drafting, or of not drafting, is known well enough to choose."""

CHECK_EVERY = 200
"""Steps between two trials of what was not chosen."""


@dataclass(frozen=True)
class Speculation:
    """How drafts are made.

    Attributes:
        draft: `ngram` (what followed the last few tokens when they came before), `member` (the member with the largest
            weight), or the folder of a smaller model with the same tokenizer.
        tokens: Tokens in a draft.
        always: Draft even where it does not pay.
    """

    draft: str = NGRAM
    tokens: int = 4
    always: bool = False


def as_asked(labeling: LabelingConfig) -> Speculation | None:
    """The drafts that a config asks for."""
    if labeling.speculation == "none":
        return None
    return Speculation(labeling.speculation, labeling.speculation_tokens)


class Draft(Protocol):
    """What guesses the next tokens."""

    def propose(self, rows: Sequence[Running]) -> list[list[int]]:
        """Guesses for the requests in slots 0, 1, …, no more than each has room for."""

    def move(self, source: int, target: int) -> None:
        """A slot's row went to another."""

    def reserve(self, length: int) -> None:
        """Allocates memory for sequences of up to this many tokens in each slot."""


class NgramDraft:
    """What followed the last tokens when they appeared before, in the prompt or in the answer."""

    def __init__(self, tokens: int) -> None:
        """Args: tokens in a draft."""
        self.tokens = tokens

    def propose(self, rows: Sequence[Running]) -> list[list[int]]:
        """See `Draft`."""
        return [self._follow(np.array(row.sequence), min(self.tokens, row.room)) for row in rows]

    def move(self, source: int, target: int) -> None:
        """Nothing is kept."""

    def reserve(self, length: int) -> None:
        """Nothing is kept."""

    def _follow(self, row: np.ndarray, count: int) -> list[int]:
        for n in range(min(LONGEST_NGRAM, len(row) - 1), 0, -1):
            windows = np.lib.stride_tricks.sliding_window_view(row[:-1], n)
            places = np.flatnonzero((windows == row[-n:]).all(axis=1))
            if len(places) and count > 0:
                after = int(places[-1]) + n
                return row[after : after + count].tolist()
        return []


class ModelDraft:
    """A model that goes ahead: a member, whose part of the ensemble's cache it writes on, or one of its own."""

    def __init__(
        self, group: RowGroup, tokens: int, slots: int, member: slice | None, temperature: float = 1.0
    ) -> None:
        """Args: where it runs; tokens in a draft; most prompts at a time; its place if the group is the ensemble's, and
        its temperature there.
        """
        self.group, self.tokens, self.member, self.temperature = group, tokens, member, temperature
        self.read: list[list[int]] = [[] for _ in range(slots)]  # a draft of its own has to catch up by itself

    def propose(self, rows: Sequence[Running]) -> list[list[int]]:
        """See `Draft`; all slots draft as many tokens as the one with most room can use."""
        count = min(self.tokens, max(row.room for row in rows))
        if count < 1:
            return [[] for _ in rows]
        starts = [self._known(slot, row.sequence) for slot, row in enumerate(rows)]
        if self.member is None:  # should this fail half way, no more than these is in the cache
            self.read[: len(rows)] = [row.sequence[:start] for row, start in zip(rows, starts, strict=True)]
        fed = [row.sequence[start:] for start, row in zip(starts, rows, strict=True)]
        while max(map(len, fed)) > CATCH_UP:  # a prompt; only its last token needs an answer
            ids, counts = padded([tokens[: min(len(tokens) - 1, CATCH_UP)] for tokens in fed])
            self.group.read(ids, starts, counts, members=self.member)
            starts = [start + n for start, n in zip(starts, counts, strict=True)]
            fed = [tokens[n:] for tokens, n in zip(fed, counts, strict=True)]
        drafts: list[list[int]] = [[] for _ in rows]
        sampling = [row.request.sampling for row in rows]
        numbers = np.stack([row.numbers(count) for row in rows], axis=1)
        for step in range(count):
            logits = self._logits(fed, starts).float()
            if self.temperature != 1:
                logits = logits / self.temperature
            uniform = torch.from_numpy(numbers[step]).to(logits.device)
            chosen = choose(torch.log_softmax(logits, dim=-1), sampling, uniform).tolist()
            starts = [start + len(tokens) for start, tokens in zip(starts, fed, strict=True)]
            fed = [[token] for token in chosen]
            for draft, token in zip(drafts, chosen, strict=True):
                draft.append(token)
        if self.member is None:
            for slot, (row, draft) in enumerate(zip(rows, drafts, strict=True)):
                self.read[slot] = [*row.sequence, *draft[:-1]]
        return [draft[: max(0, row.room)] for row, draft in zip(rows, drafts, strict=True)]

    def move(self, source: int, target: int) -> None:
        """See `Draft`; the ensemble moves the cache that it shares."""
        if self.member is None:
            self.read[target] = self.read[source]
            self.group.move(source, target)

    def reserve(self, length: int) -> None:
        """See `Draft`; the ensemble does so for the cache that it shares."""
        if self.member is None:
            self.group.reserve(length)

    def _known(self, slot: int, sequence: list[int]) -> int:
        """How many tokens of the sequence are in the cache and right; at least the last is read again."""
        if self.member is not None:
            return len(sequence) - 1
        before = self.read[slot]
        most = min(len(before), len(sequence) - 1)
        return next((i for i in range(most) if before[i] != sequence[i]), most)

    def _logits(self, rows: list[list[int]], starts: list[int]) -> torch.Tensor:
        """After the last token of each row, `[slots, vocabulary]`."""
        ids, counts = padded(rows)
        logits = self.group.logits(ids, starts, counts, members=self.member)[0]
        return logits[torch.arange(len(rows)), torch.tensor(counts) - 1]


def make_draft(
    speculation: Speculation, model: EnsembleForCausalLM, groups: Sequence[Group], slots: int
) -> Draft | None:
    """The draft that was asked for; None, and a warning, if a member cannot take tokens back.

    Raises:
        ConfigError: If it is not known, or has another vocabulary.
    """
    if speculation.tokens < 1:
        raise ConfigError(f"speculation: tokens is {speculation.tokens}; expected at least 1")
    if alone := [group for group in groups if not isinstance(group, RowGroup)]:
        name = model.names[alone[0].members[0]]
        log.warning("no speculation: %s runs %s and may not be able to take tokens back", name, alone[0].kind)
        return None
    if speculation.draft == NGRAM:
        return NgramDraft(speculation.tokens)
    if speculation.draft == MEMBER:
        best = int(np.argmax(model.weights))
        group = next(group for group in groups if best in group.members)
        assert isinstance(group, RowGroup)
        place = group.members.index(best)
        temperature = model.temperatures[best] if model.temperatures else 1.0
        return ModelDraft(group, speculation.tokens, slots, slice(place, place + 1), temperature)
    if not Path(speculation.draft).is_dir():
        raise ConfigError(
            f"speculation: draft is {speculation.draft!r}; expected {NGRAM}, {MEMBER} or a model's folder"
        )
    network = load_causal_lm(speculation.draft, dtype=model.dtype, device=model.device)
    if logits_vocabulary(network) != model.vocabulary:
        raise ConfigError(
            f"speculation: draft {speculation.draft} has a vocabulary of {logits_vocabulary(network)} tokens and the "
            f"ensemble one of {model.vocabulary}"
        )
    [own] = make_groups([MemberNetwork(network, None, None)], slots)
    if not isinstance(own, RowGroup):
        raise ConfigError(f"speculation: draft {speculation.draft} runs {own.kind}; choose another")
    return ModelDraft(own, speculation.tokens, slots, None)


@dataclass
class StepTokens:
    """How many tokens came out of one step; filled in by the engine."""

    tokens: int = 0


class Pace:
    """Whether drafts pay: compares seconds per token with and without them, and tries both again from time to time.

    Seconds per token depend on the number of rows, so each power of two of it is judged by itself.

    Attributes:
        speculate: Whether the last step made drafts, or would have.
    """

    def __init__(self, always: bool = False) -> None:
        """Args: whether to draft even where it does not pay."""
        self.always = always
        self.speculate = True
        self._trials: dict[int, _Trial] = {}

    @contextmanager
    def timed(self, rows: int) -> Iterator[StepTokens]:
        """Decides whether the step inside drafts, and measures it."""
        trial = self._trials.setdefault(rows.bit_length(), _Trial())
        self.speculate = self.always or trial.better()
        measured, start = StepTokens(), time.perf_counter()
        yield measured
        trial.add(self.speculate, (time.perf_counter() - start) / max(1, measured.tokens))


class _Trial:
    """Seconds per token of the last steps with drafts and without."""

    def __init__(self) -> None:
        self._steps = 0
        self._seconds: dict[bool, list[float]] = {True: [], False: []}

    def add(self, drafting: bool, seconds: float) -> None:
        self._steps += 1
        self._seconds[drafting].append(seconds)
        del self._seconds[drafting][:-TRIAL]
        if self._steps % CHECK_EVERY == 0:
            self._seconds[not drafting].clear()

    def better(self) -> bool:
        with_, without = self._seconds[True], self._seconds[False]
        if len(with_) < TRIAL:
            return True
        return len(without) == TRIAL and median(with_) < median(without)
