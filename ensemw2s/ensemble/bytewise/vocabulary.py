"""The bytes of a tokenizer's tokens: a Hugging Face tokenizer comes in, a sorted table of bytes goes out.

Its own module because this is all that the mixture over bytes knows of a tokenizer. In a sorted table the tokens that
start with given bytes are neighbours, so that their probability is a difference of two cumulative sums.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ensemw2s.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END = 256
"""The symbol after the 256 bytes: the answer ends here."""

SPACE = "\u2581"
"""How SentencePiece writes a space."""

EDGES_KEPT = 8192
"""Prefixes whose ranges are remembered, 2 KiB each."""


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes | None]:
    """The bytes that each token adds to a text.

    Knows byte-level BPE (every byte is written as a character) and BPE or unigram models in the way of SentencePiece
    (`▁` is a space, `<0x0A>` a byte). Added tokens that are not special are text.

    Returns:
        By id; None for special tokens, the unknown token, and ids that no token has.

    Raises:
        ModelError: If the tokenizer is of another kind, for example WordPiece, which does not keep spaces.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    name = tokenizer.name_or_path or type(tokenizer).__name__
    if backend is None:
        raise ModelError(
            f"the tokenizer of {name} has no fast version, whose decoder says what bytes a token stands for"
        )
    tree = json.loads(backend.to_str())
    decoders = _kinds(tree.get("decoder"))
    if "ByteLevel" in decoders:
        spell = _byte_level
    elif {"Metaspace", "ByteFallback"} & decoders:
        spell = _sentencepiece
    else:
        raise ModelError(
            f"the tokenizer of {name} is decoded by {', '.join(sorted(decoders)) or 'nothing'}; a mixture over bytes "
            "knows byte-level BPE, and SentencePiece models with ▁ for a space"
        )
    texts: dict[int, str] = {index: token for token, index in tokenizer.get_vocab().items()}
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= {index for index in tokenizer.all_special_ids if index is not None}
    unknown = tree["model"].get("unk_token")
    return [
        None if index in special or index not in texts or texts[index] == unknown else spell(texts[index]) or None
        for index in range(max(texts) + 1)
    ]


class ByteTable:
    """Tokens in the order of their bytes; several ids may have the same bytes.

    Attributes:
        strings: The bytes of each token, sorted.
        ids: `[tokens]`, int64: their ids in this order; equal strings by id.
        vocabulary: Ids that the tokenizer has, those without bytes included.
        by_id: Bytes by id; None for ids without bytes.
    """

    def __init__(self, tokens: Sequence[bytes | None]) -> None:
        """Args: bytes by id, as `token_bytes` gives them."""
        pairs = sorted((token, index) for index, token in enumerate(tokens) if token)
        self.strings = [token for token, _ in pairs]
        self.ids = np.array([index for _, index in pairs], dtype=np.int64)
        self.vocabulary, self.by_id = len(tokens), list(tokens)
        self._edges: dict[bytes, np.ndarray] = {}

    def missing(self) -> list[int]:
        """Bytes that no token stands for alone: a text with them may have no tokens."""
        single = {token[0] for token in self.strings if len(token) == 1}
        return [byte for byte in range(256) if byte not in single]

    def cumulative(self, probabilities: np.ndarray) -> np.ndarray:
        """Sums over the table's order.

        Args:
            probabilities: `[at least vocabulary]`, float64, by id.

        Returns:
            `[tokens + 1]`, float64: the sum before each place; the last is the mass of all tokens with bytes.
        """
        sums = np.zeros(len(self.ids) + 1)
        np.cumsum(probabilities[self.ids], out=sums[1:])
        return sums

    def edges(self, prefix: bytes) -> np.ndarray:
        """Where the tokens that start with a prefix lie, by the byte that follows.

        Args:
            prefix: May be empty.

        Returns:
            `[258]`, int64. Places `[0]` to `[1]`: tokens that are the prefix itself; `[1 + b]` to `[2 + b]`: those
            that go on with byte b. Neighbours share their edge.
        """
        found = self._edges.get(prefix)
        if found is None:
            if len(self._edges) >= EDGES_KEPT:
                self._edges.clear()
            low = bisect_left(self.strings, prefix)
            high = bisect_left(self.strings, _after(prefix), low) if _after(prefix) else len(self.strings)
            inner = [bisect_left(self.strings, prefix + bytes([byte]), low, high) for byte in range(256)]
            found = self._edges[prefix] = np.array([low, *inner, high], dtype=np.int64)
        return found


def _after(prefix: bytes) -> bytes:
    """The first string behind all that start with the prefix; empty where there is none."""
    short = prefix.rstrip(b"\xff")
    return short[:-1] + bytes([short[-1] + 1]) if short else b""


def _kinds(decoder: Any) -> set[str]:
    """Types of a decoder and of all in its sequence."""
    if not decoder:
        return set()
    return {decoder["type"]}.union(*(_kinds(part) for part in decoder.get("decoders", [])))


def _byte_level(token: str) -> bytes:
    """A token of byte-level BPE; an added one with other characters is the text that it shows."""
    try:
        return bytes(_BYTE_OF[character] for character in token)
    except KeyError:
        return token.encode()


def _sentencepiece(token: str) -> bytes:
    """A token of SentencePiece."""
    if re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", token):
        return bytes([int(token[3:5], 16)])
    return token.replace(SPACE, " ").encode()


def _characters() -> dict[str, int]:
    """The characters by which byte-level BPE writes bytes: printable ones as they are, the others from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _characters()
