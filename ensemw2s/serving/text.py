"""Tokens as text while they are decoded: ids come in one after the other, text goes out that will not change any more.

Apart from the rest because two things make it more than a call of the tokenizer: a token can be part of a character,
and the end of the text can be the beginning of a stop string.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

BROKEN = "\ufffd"
"""What the bytes of an unfinished character decode to."""


class TextStream:
    """The text of one answer as it grows."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = (), prefix: str = "") -> None:
        """Args: the tokenizer; stop strings; what is left out where the text begins with it."""
        self._tokenizer, self._stop, self._prefix = tokenizer, tuple(stop), prefix
        self._ids: list[int] = []
        self._context, self._read = 0, 0  # tokens that new ones are decoded along with, and those that are text
        self._held = ""

    def push(self, ids: Sequence[int], *, each: bool = True) -> tuple[str, list[str]]:
        """Takes tokens.

        Args:
            ids: The tokens.
            each: Tell what each one added; else they are decoded together, which takes less time.

        Returns:
            Text that can be shown, and what each token, or all of them, added to the text (nothing while a character
            is unfinished).
        """
        added = [self._add([token]) for token in ids] if each else [self._add(ids)]
        return self._release(final=False), added

    def finish(self, stop: str | None) -> str:
        """The rest of the text; up to the stop string, if one ended it."""
        rest = self._decode(self._context, len(self._ids))[len(self._decode(self._context, self._read)) :]
        self._hold(rest, final=True)
        text = self._release(final=True)
        if stop is not None and stop in text:
            text = text[: text.index(stop)]
        return text

    def _add(self, ids: Sequence[int]) -> str:
        self._ids.extend(ids)
        before, after = self._decode(self._context, self._read), self._decode(self._context, len(self._ids))
        if len(after) <= len(before) or after.endswith(BROKEN):
            return ""
        self._context, self._read = self._read, len(self._ids)
        new = after[len(before) :]
        self._hold(new, final=False)
        return new

    def _decode(self, start: int, stop: int) -> str:
        return str(self._tokenizer.decode(self._ids[start:stop], skip_special_tokens=True))

    def _hold(self, new: str, *, final: bool) -> None:
        """Adds to what is to be shown; without the prefix, once it is known whether the text begins with it."""
        self._held += new
        undecided = len(self._held) < len(self._prefix) and self._prefix.startswith(self._held) and not final
        if self._prefix and new and not undecided:
            self._held, self._prefix = self._held.removeprefix(self._prefix), ""

    def _release(self, *, final: bool) -> str:
        """What is held back, but for an end that a stop string (or the prefix) may begin with."""
        keep = 0 if final else max((_overlap(self._held, stop) for stop in self._stop), default=0)
        if self._prefix and not final:
            keep = len(self._held)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that the stop string begins with; all from a whole stop string on."""
    if (place := text.find(stop)) >= 0:
        return len(text) - place
    return next((k for k in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-k:])), 0)
