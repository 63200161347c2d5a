"""The live contexts of one model: bytes of a text come in one by one, the exact distribution of the next byte goes out.

A text can be cut into tokens in many ways, and a model gives each of them a probability. A *context* is a sequence of
tokens that spells the text up to some byte; the bytes after it are *pending*, inside a token that is not finished. The
probability of a text is the sum over all sequences of tokens that cover it, the last one perhaps beyond its end. That
a byte distribution is such a sum is shown by Phan et al. 2024 (Exact byte-level probabilities from tokenized language
models), Vieira et al. 2024 (From language models over tokens to characters) and Hayase et al. 2025 (Sampling from
your language model one byte at a time).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ensemw2s.ensemble.bytewise.vocabulary import END, ByteTable
from ensemw2s.errors import DataError

REMEMBERED = 64
"""Dropped contexts that can be read anew."""

MOST_READ_ANEW = 3
"""Dropped contexts that are read for one byte, where the byte has some mass without them."""

MOST_READ_IN_NEED = 16
"""The same, where it has none."""

NOISE = 1e-14
"""Differences of cumulative sums under this may be rounding."""


class Rows(Protocol):
    """A language model that keeps what it has read in rows, one for each context."""

    def start(self, ids: Sequence[int]) -> tuple[int, np.ndarray]:
        """Reads a prompt into a free row; gives the row, and `[vocabulary]`, float64: p(next token)."""

    def extend(self, forks: Sequence[Fork], gone: Sequence[int]) -> list[tuple[int, np.ndarray]]:
        """Reads one more token in a copy of a row, for all forks in one pass, and frees the rows that are gone."""

    def free(self, rows: Sequence[int]) -> None:
        """Frees rows of a text that is done."""

    def full(self, row: int) -> bool:
        """Whether a row has no room for another token."""


@dataclass(frozen=True)
class Fork:
    """A context that a row and one more token make.

    Attributes:
        row: The row it comes from.
        token: Id of the token that it reads.
    """

    row: int
    token: int


@dataclass
class Context:
    """Tokens that spell the text up to some byte.

    Attributes:
        row: Where the model keeps them.
        tokens: Their ids behind the prompt's.
        weight: Their probability, divided by that of the text; the tokens that go on from here share it.
        pending: Bytes of the text behind them.
        sums: Cumulative sums of p(next token) in the table's order.
        end: Mass of the stop tokens.
    """

    row: int
    tokens: tuple[int, ...]
    weight: float
    pending: bytes
    sums: np.ndarray
    end: float


@dataclass
class Dropped:
    """A context that was dropped when its last token ended, before the model read it.

    Attributes:
        tokens: Its ids behind the prompt's.
        weight: As of `Context`.
        at: Bytes that it spells.
    """

    tokens: tuple[int, ...]
    weight: float
    at: int


@dataclass
class Step:
    """What a byte needs before the tree has taken it: new rows for contexts that end exactly behind it.

    Attributes:
        forks: The new contexts' rows.
        tokens: Their ids behind the prompt's.
        weights: Their weights.
        gone: Rows that are used no more.
    """

    forks: list[Fork]
    tokens: list[tuple[int, ...]]
    weights: list[float]
    gone: list[int]


class Tree:
    """The live contexts of one text.

    What is lost is in `dropped` and `unspelled`; kept and lost mass are the whole, with nothing normalised but by the
    mass that was kept before.

    A byte can be possible only behind contexts that were dropped. So the heaviest of them are remembered by their
    tokens, and read anew where a byte comes that the kept ones hardly expect (`settle`).

    Attributes:
        contexts: Those that are kept.
        log_mass: Log of the kept probability of the text behind the prompt's ids.
        dropped: Share of the mass that was dropped with contexts under ε, summed over the bytes so far.
        passes: Rows of forward passes after the prompt's.
    """

    def __init__(
        self, table: ByteTable, stop_ids: Sequence[int], *, epsilon: float = 1e-3, most: int = 8, name: str = "model"
    ) -> None:
        """A tree without contexts; `begin` gives it the first.

        Args:
            table: Bytes of the model's tokens.
            stop_ids: Tokens that end an answer; they have no bytes here.
            epsilon: Contexts with less than this share of the mass are dropped; 0 keeps all.
            most: Contexts kept at most, the heaviest; the others count as dropped.
            name: Of the model, for messages.
        """
        self.table, self.epsilon, self.most, self.name = table, epsilon, most, name
        self.stop_ids = np.array(sorted(set(stop_ids)), dtype=np.int64)
        self.contexts: list[Context] = []
        self.log_mass, self.dropped, self.passes = 0.0, 0.0, 0
        self._prompt: tuple[int, ...] = ()
        self._text = b""
        self._dormant: list[Dropped] = []
        self._settled, self._cleared = False, 0.0

    def begin(self, rows: Rows, ids: Sequence[int]) -> None:
        """Starts behind a prompt's tokens, which the model reads."""
        row, probabilities = rows.start(ids)
        self._prompt = tuple(ids)
        self.contexts = [self._context(row, (), 1.0, probabilities)]

    def masses(self) -> np.ndarray:
        """Mass of each next symbol.

        Returns:
            `[257]`, float64: of 256 bytes and END. They sum to 1 less `unspelled()`.
        """
        total = np.zeros(END + 1)
        for context in self.contexts:
            edges = self.table.edges(context.pending)
            total[:END] += context.weight * np.diff(context.sums[edges[1:]])
            if not context.pending:
                total[END] += context.weight * context.end
        return total

    def unspelled(self) -> float:
        """Mass of tokens that are neither text nor an end (other special tokens, padding of the output layer)."""
        ending = [c for c in self.contexts if not c.pending]
        return sum(c.weight * max(0.0, 1.0 - float(c.sums[-1]) - c.end) for c in ending)

    def settle(self, rows: Rows, byte: int) -> tuple[float, float]:
        """Reads dropped contexts anew where the next byte is known and has hardly any mass behind the kept ones.

        Args:
            rows: The model.
            byte: What `take` will take.

        Returns:
            Mass that was found for the byte, and for all symbols; to be added to `masses`.
        """
        found, lived, tries = 0.0, 0.0, 0
        here = sum(self._mass(context, byte) for context in self.contexts)
        while not self._settled and self._dormant and here + found <= self.epsilon / 10:
            tried = tries >= (MOST_READ_ANEW if here + found > NOISE else MOST_READ_IN_NEED)
            worth = [dropped for dropped in self._dormant if dropped.weight > 2 * (here + found)]
            if tried or not worth:
                break
            # A token that goes on over pending bytes with one that is not expected is rare: near ones are read first.
            best = max(worth, key=lambda dropped: dropped.weight * 0.01 ** (len(self._text) - dropped.at))
            tries += 1
            self._make_room(rows, byte)
            self._dormant.remove(best)
            more, all_of_it = self._read_anew(rows, best, byte)
            found, lived = found + more, lived + all_of_it
        self._settled = True
        return found, lived

    def take(self, byte: int) -> Step:
        """Goes on by a byte; `grow` has to follow with the rows of the forks.

        Raises:
            DataError: If the model's tokens cannot spell it here.
        """
        kept: list[tuple[float, Context, Fork | None]] = []
        for context in self.contexts:
            edges = self.table.edges(context.pending + bytes([byte]))
            inside = context.weight * float(context.sums[edges[-1]] - context.sums[edges[1]])
            if inside > 0:
                kept.append((inside, context, None))
            for place in range(edges[0], edges[1]):
                mass = context.weight * float(context.sums[place + 1] - context.sums[place])
                if mass > 0:
                    kept.append((mass, context, Fork(context.row, int(self.table.ids[place]))))
        total = sum(mass for mass, _, _ in kept)
        if total <= 0:
            raise DataError(
                f"{self.name} gives byte 0x{byte:02x} no probability here: its tokens cannot spell this text"
            )
        kept.sort(key=lambda entry: -entry[0])
        live = [entry for entry in kept[: self.most] if entry[0] >= self.epsilon * total] or kept[:1]
        lost = kept[len(live) :]
        share = sum(mass for mass, _, _ in live)
        self.log_mass += float(np.log(share))
        self.dropped += (sum(mass for mass, _, _ in lost) + self._cleared) / (total + self._cleared)
        self._text += bytes([byte])
        self._settled, self._cleared = False, 0.0
        self._remember(lost, share)
        staying = {id(context) for _, context, fork in live if fork is None}
        new = [(mass, context, fork) for mass, context, fork in live if fork is not None]
        step = Step(
            forks=[fork for _, _, fork in new],
            tokens=[(*context.tokens, fork.token) for _, context, fork in new],
            weights=[mass / share for mass, _, _ in new],
            gone=[context.row for context in self.contexts if id(context) not in staying],
        )
        self.contexts = [context for context in self.contexts if id(context) in staying]
        for context in self.contexts:
            context.weight /= share
            context.pending += bytes([byte])
        return step

    def grow(self, step: Step, rows: Sequence[tuple[int, np.ndarray]]) -> None:
        """Takes the rows that `take` asked for.

        Args:
            step: What `take` gave.
            rows: Row and `[vocabulary]` probabilities of each fork.
        """
        for tokens, weight, (row, probabilities) in zip(step.tokens, step.weights, rows, strict=True):
            self.contexts.append(self._context(row, tokens, weight, probabilities))
        self.passes += len(step.forks)

    def _context(self, row: int, tokens: tuple[int, ...], weight: float, probabilities: np.ndarray) -> Context:
        end = float(probabilities[self.stop_ids].sum())
        return Context(row, tokens, weight, b"", self.table.cumulative(probabilities), end)

    def _mass(self, context: Context, byte: int) -> float:
        """What a context gives to a next byte."""
        edges = self.table.edges(context.pending)
        return context.weight * float(context.sums[edges[2 + byte]] - context.sums[edges[1 + byte]])

    def _remember(self, lost: Sequence[tuple[float, Context, Fork | None]], share: float) -> None:
        """The heaviest context that was dropped at the end of a token, one for each of the last bytes."""
        for dropped in self._dormant:
            dropped.weight /= share
        ending = [(mass, context, fork) for mass, context, fork in lost if fork is not None]
        if ending:
            mass, context, fork = ending[0]
            self._dormant.append(Dropped((*context.tokens, fork.token), mass / share, len(self._text)))
        self._dormant = self._dormant[-REMEMBERED:]

    def _make_room(self, rows: Rows, byte: int) -> None:
        """Frees rows of contexts that the byte ends anyway, and of the lightest."""
        by_mass = sorted(self.contexts, key=lambda context: -self._mass(context, byte))
        staying = [context for context in by_mass[: max(0, self.most - 2)] if self._mass(context, byte) > 0]
        going = [context for context in self.contexts if all(context is not other for other in staying)]
        rows.free([context.row for context in going])
        self._cleared += sum(self._mass(context, byte) for context in going)
        self.contexts = staying

    def _read_anew(self, rows: Rows, dropped: Dropped, byte: int) -> tuple[float, float]:
        """A dropped context, and those that grow from it up to here: its mass for the byte, and in all."""
        part = Tree(self.table, [int(i) for i in self.stop_ids], epsilon=self.epsilon, most=2, name=self.name)
        part.begin(rows, [*self._prompt, *dropped.tokens])
        try:
            for one in self._text[dropped.at :]:
                advance(rows, [part], [one])
        except DataError:
            rows.free([context.row for context in part.contexts])
            return 0.0, 0.0
        scale = dropped.weight * float(np.exp(part.log_mass))
        self.passes += part.passes + 1
        found = scale * float(part.masses()[byte])
        for context in part.contexts:
            context.weight, context.tokens = context.weight * scale, (*dropped.tokens, *context.tokens)
            if self._mass(context, byte) > 0:
                self.contexts.append(context)
            else:
                rows.free([context.row])
        self._dormant += [
            Dropped((*dropped.tokens, *d.tokens), d.weight * scale, dropped.at + d.at) for d in part._dormant
        ]
        return found, scale


def advance(rows: Rows, trees: Sequence[Tree], taken: Sequence[int]) -> None:
    """All trees of one model go on by a byte each, in one forward pass.

    Args:
        rows: The model.
        trees: One for each text.
        taken: The byte of each.

    Raises:
        DataError: If the model's tokens cannot spell one; then no tree but those before it has gone on.
    """
    for tree, byte in zip(trees, taken, strict=True):
        tree.settle(rows, byte)
    steps = [tree.take(byte) for tree, byte in zip(trees, taken, strict=True)]
    forks = [fork for step in steps for fork in step.forks]
    made = iter(rows.extend(forks, [row for step in steps for row in step.gone]))
    for tree, step in zip(trees, steps, strict=True):
        tree.grow(step, [next(made) for _ in step.forks])
