"""What a mixture over bytes says of an answer: log-probabilities by byte, and how each tokenizer's models voted."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from ensemw2s.ensemble.bytewise.vocabulary import END


@dataclass(frozen=True)
class SpanVotes:
    """How the voices voted on some bytes of an answer.

    Attributes:
        text: The bytes as text.
        start: Where they start in the answer's UTF-8, in bytes.
        logprob: Log-probability of the span given what is before it, in nats.
        voice_logprobs: `[voices]`, float64: the same of each voice.
        agreement: Share of the vote whose own likeliest byte is the answer's, at every byte of the span.
    """

    text: str
    start: int
    logprob: float
    voice_logprobs: np.ndarray
    agreement: float


@dataclass(frozen=True)
class ByteAnswer:
    """An answer, generated or given; n symbols: its bytes, and END where it ended.

    Attributes:
        text: The answer.
        ended: Whether its end is one of the symbols.
        logprobs: `[n]`, float64: natural log of p(symbol | prompt and symbols before).
        voice_logprobs: `[voices, n]`, float64: the same of each voice; -inf from where on one sits out.
        choices: `[voices, n]`, int64: each voice's likeliest symbol, 256 is END; -1 where it sits out.
        shares: `[voices]`: the vote of each, sums to 1.
        dropped: `[voices]`: mass that was dropped with contexts under ε, summed over the answer.
        passes: `[voices]`, int64: rows of forward passes that the answer took.
        likeliest: `[n]`, int64: the symbol that is likeliest under the mixture.
    """

    text: str
    ended: bool
    logprobs: np.ndarray
    voice_logprobs: np.ndarray
    choices: np.ndarray
    shares: np.ndarray
    dropped: np.ndarray
    passes: np.ndarray
    likeliest: np.ndarray

    @property
    def symbols(self) -> np.ndarray:
        """`[n]`, int64: the answer's bytes, and 256 where it ended."""
        data = np.frombuffer(self.text.encode(), np.uint8).astype(np.int64)
        return np.append(data, END) if self.ended else data

    @property
    def agreement(self) -> np.ndarray:
        """`[n]`, float64: share of the vote whose own likeliest symbol is the answer's; who sits out has none."""
        speaking = self.shares[:, None] * (self.choices >= 0)
        return np.asarray((speaking * (self.choices == self.symbols)).sum(axis=0) / speaking.sum(axis=0))

    @property
    def entropy(self) -> np.ndarray:
        """`[n]`, float64: entropy in nats of the shares of the voices' likeliest symbols; 0 where all agree."""
        speaking = self.shares[:, None] * (self.choices >= 0)
        found = np.zeros(len(self.logprobs))
        for place, choices in enumerate(self.choices.T):
            votes = np.bincount(choices[choices >= 0], weights=speaking[choices >= 0, place])
            shares = votes[votes > 0] / votes.sum()
            found[place] = -(shares * np.log(shares)).sum() + 0.0
        return found

    @property
    def logprob(self) -> float:
        """Log-probability of the whole answer, in nats."""
        return float(self.logprobs.sum())

    @property
    def bits_per_byte(self) -> float:
        """Negative log-probability, its end included where there is one, in bits per byte of the answer."""
        return -self.logprob / math.log(2) / max(1, len(self.text.encode()))

    def words(self) -> list[SpanVotes]:
        """The votes on each word, with the space before it."""
        return [self.span(*match.span()) for match in re.finditer(rb"\s*\S+|\s+", self.text.encode())]

    def span(self, start: int, end: int) -> SpanVotes:
        """The votes on some bytes.

        Args:
            start: First byte.
            end: Behind the last.
        """
        data = self.text.encode()[start:end]
        hits = (self.choices[:, start:end] == np.frombuffer(data, dtype=np.uint8)).all(axis=1)
        return SpanVotes(
            text=data.decode(errors="backslashreplace"),
            start=start,
            logprob=float(self.logprobs[start:end].sum()),
            voice_logprobs=self.voice_logprobs[:, start:end].sum(axis=1),
            agreement=float(self.shares[hits].sum()),
        )
