"""A voter of several tokenizers: prompts in, answers by the byte out, in the records that an ensemble of one gives.

So that labels and figures are made of both alike: a token is a byte here, and `END` is the end token. Prompts are read
as in training: each tokenizer's own ids, and the answer begins with a token of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from ensemw2s.config import DataConfig
from ensemw2s.data.tokens import tokenize_prompts, turn_end
from ensemw2s.ensemble.bytewise.answers import ByteAnswer
from ensemw2s.ensemble.bytewise.mixture import ByteMixture, VoiceModel
from ensemw2s.ensemble.bytewise.prompts import Prompt
from ensemw2s.ensemble.bytewise.vocabulary import END
from ensemw2s.ensemble.requests import Generation
from ensemw2s.ensemble.sampling import Sampling
from ensemw2s.errors import DataError

BYTES_PER_TOKEN = 4
"""A limit of n tokens is one of so many times n bytes, where there are no tokens that all members share."""

TEXTS = 16
"""Most texts that are written at the same time."""


class ByteText:
    """What a tokenizer is asked for after decoding, for bytes."""

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """The text of bytes; the end is no part of it, and a character that is not whole is shown as such."""
        return bytes(index for index in ids if 0 <= index < END).decode(errors="replace")


@dataclass(frozen=True)
class LoadedMixture:
    """Models of several tokenizers in memory; the sibling of `voter.Loaded`.

    Attributes:
        voices: The models of each tokenizer.
    """

    voices: tuple[VoiceModel, ...]

    @property
    def tokenizer(self) -> ByteText:
        """How bytes are read."""
        return ByteText()

    @property
    def members(self) -> int:
        """Models that answer together."""
        return sum(voice.model.num_members for voice in self.voices)

    def ends(self, data: DataConfig) -> tuple[int, ...]:
        """What ends an answer."""
        return (END,)


class ByteVoter:
    """A mixture that answers a run's prompts; several threads may call it, one at a time is served.

    Attributes:
        voices: The models of each tokenizer.
        data: How prompts are rendered and answers end.
        mixture: The mixture.
        prefix: What precedes an answer.
    """

    def __init__(self, loaded: LoadedMixture, data: DataConfig, *, texts: int) -> None:
        """Args: the models; how prompts are rendered and answers end; texts that are written at the same time."""
        self.voices, self.data, self._lock = loaded.voices, data, threading.Lock()
        ends = [turn_end(voice.tokenizer, data)[1] for voice in loaded.voices]
        voices = [replace(voice, stop_ids=(end,)) for voice, end in zip(loaded.voices, ends, strict=True)]
        self.mixture = ByteMixture.of_models(voices, texts=min(texts, TEXTS))
        self.prefix = "" if data.chat_template else data.answer_prefix

    @property
    def kinds(self) -> tuple[str, ...]:
        """How the members run, for people."""
        return (f"{len(self.voices)} tokenizers, by the byte",)

    def prompts(self, texts: Sequence[str]) -> list[list[Prompt]]:
        """Each prompt as each voice reads it, in the templates of the run.

        Raises:
            DataError: If a tokenizer cannot write the text of a control token as text.
        """
        read = [tokenize_prompts(list(texts), voice.tokenizer, self.data) for voice in self.voices]
        return [[Prompt(ids) for ids in each] for each in zip(*read, strict=True)]

    def generate(
        self,
        prompts: Sequence[Sequence[Prompt]],
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        seed: int = 0,
    ) -> list[Generation | DataError]:
        """Answers prompts.

        Args:
            prompts: Of `prompts`.
            max_new_tokens: Longest answer, as `BYTES_PER_TOKEN` bytes each.
            sampling: How a byte is chosen; default: greedy.
            seed: Of the random numbers.

        Returns:
            An answer for each prompt, or what is wrong with the prompt.
        """
        longest = max_new_tokens * BYTES_PER_TOKEN
        with self._lock:
            found = _each(
                prompts,
                lambda some: self.mixture.generate(some, max_new_bytes=longest, sampling=sampling, seed=seed),
            )
        return [as_generation(one) if isinstance(one, ByteAnswer) else one for one in found]

    def score(self, prompts: Sequence[Sequence[Prompt]], answers: Sequence[str]) -> list[ByteAnswer | DataError]:
        """Probabilities of answers, which get the prefix that answers have in training, and of their ends."""
        pairs = [(prompt, self.prefix + answer) for prompt, answer in zip(prompts, answers, strict=True)]
        with self._lock:
            return _each(pairs, lambda some: self.mixture.score([p for p, _ in some], [a for _, a in some]))


def as_generation(answer: ByteAnswer) -> Generation:
    """A byte answer as an engine would give it: bytes are the tokens, and `END` is the end token."""
    return Generation(
        token_ids=answer.symbols.tolist(),
        logprobs=answer.logprobs.astype(np.float32),
        agreement=answer.agreement.astype(np.float32),
        votes=answer.choices.T,
        entropy=answer.entropy.astype(np.float32),
        finish_reason="stop" if answer.ended else "length",
    )


ItemT = TypeVar("ItemT")


def _each(items: Sequence[ItemT], work: Callable[[Sequence[ItemT]], list[ByteAnswer]]) -> list[ByteAnswer | DataError]:
    """The work of all items; where one cannot be done, each is done alone, so that the others are."""
    try:
        return [*work(items)]
    except DataError as error:
        if len(items) == 1:
            return [error]
    return [found for item in items for found in _each([item], work)]
