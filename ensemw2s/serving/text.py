"""Tokens as text while they are decoded: ids come in one after the other, text goes out that will not change any more.

Apart from the rest because two things make it more than a call of the tokenizer: a token can be part of a character,
and the end of the text can be the beginning of a stop string.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache

from transformers import PreTrainedTokenizerBase

BROKEN = "\ufffd"
"""What the bytes of an unfinished character decode to."""

ONE_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""Tokens of one byte in vocabularies of characters."""


class TokenBytes:
    """The bytes of single tokens, as they are inside a text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._special = set(tokenizer.all_special_ids)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        decoder = str(json.loads(backend.to_str())["decoder"]) if backend is not None else ""
        self._byte_level, self._spaced = "ByteLevel" in decoder, "\u2581" in decoder
        self._known: dict[int, tuple[str, bytes]] = {}

    def __call__(self, token: int) -> tuple[str, bytes]:
        """How a token is shown, and its bytes. Special tokens have a name and no bytes."""
        if (found := self._known.get(token)) is None:
            found = self._known[token] = self._look_up(token)
        return found

    def _look_up(self, token: int) -> tuple[str, bytes]:
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if not isinstance(piece, str):  # an id that the model has and the tokenizer has not
            return "", b""
        if token in self._special:
            return piece, b""
        raw = self._bytes_of(token, piece)
        return shown(raw), raw

    def _bytes_of(self, token: int, piece: str) -> bytes:
        if self._byte_level:
            values = [byte_of_character().get(character) for character in piece]
            return piece.encode() if None in values else bytes(value for value in values if value is not None)
        if one := ONE_BYTE.fullmatch(piece):
            return bytes([int(one[1], 16)])
        if self._spaced:
            return piece.replace("\u2581", " ").encode()
        return str(self._tokenizer.decode([token])).encode()


def shown(raw: bytes) -> str:
    """Bytes as text; as escapes where they are none."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in raw)


@cache
def byte_of_character() -> dict[str, int]:
    """What byte-level vocabularies write for each byte: printable ones as themselves, the others from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


class OwnBytes:
    """The bytes that each token of an answer adds to it; all of them together are the text."""

    def __init__(self, look_up: TokenBytes) -> None:
        self._look_up, self._pending = look_up, b""

    def push(self, token: int, added: str) -> tuple[str, list[int]]:
        """How the next token is shown, and its bytes.

        Args:
            token: Its id.
            added: What it added to the text.
        """
        _, own = self._look_up(token)
        whole = added.encode(errors="replace")
        if not added:  # an unfinished character, or a special token
            self._pending += own
            return shown(own), list(own)
        raw = whole.removeprefix(self._pending) if self._pending else whole
        self._pending = b""
        return shown(raw), list(raw)


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
