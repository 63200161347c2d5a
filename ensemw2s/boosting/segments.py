"""Segments: the samples of boosting where experts have several tokenizers; tokens of answers in, votes per segment out.

A segment is the shortest stretch of an answer that ends at a character's end where every tokenizer has a token's end.
The answer's end is the last one. With one tokenizer whose tokens are whole characters, a segment is a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

SEGMENTS = "segments"
"""Column of a table of tokens: the segment of each answer token, counted from 0 in every answer."""

END_BYTES = b"\xfe"
"""Stands for a special token, such as the answer's end, in what an expert predicts; UTF-8 has no such byte."""

CUT_OTHERWISE = b"\xff"
"""Follows bytes that are the right ones, although a token of them is not the expert's likeliest."""


def segment_ids(text: bytes, spellings: Sequence[Sequence[bytes]]) -> list[Ints]:
    """The segment of each token of an answer.

    An answer that one tokenizer does not spell byte for byte (it has an unknown token, for example) is one segment.

    Args:
        text: The answer, not empty unless there is none.
        spellings: For each tokenizer, the bytes of the answer's tokens. The end token follows them and is not among
            them.

    Returns:
        For each tokenizer `[tokens + 1]`, int64: the segments are counted from 0, and the last is the end's alone.
    """
    ends = [np.cumsum([len(token) for token in tokens], dtype=np.int64) for tokens in spellings]
    exact = all(b"".join(tokens) == text for tokens in spellings)
    if not exact:
        last = int(any(len(tokens) for tokens in spellings))
        return [np.array([0] * len(tokens) + [last], dtype=np.int64) for tokens in spellings]
    data = np.frombuffer(text, np.uint8)
    whole = np.flatnonzero(np.append((data[1:] & 0xC0) != 0x80, True)) + 1 if len(text) else np.zeros(0, np.int64)
    shared = whole
    for own in ends:
        shared = np.intersect1d(shared, own)
    return [np.append(np.searchsorted(shared, own), len(shared)).astype(np.int64) for own in ends]


def numbered(segments: Sequence[Ints]) -> tuple[Ints, list[int]]:
    """Segments of all answers numbered through.

    Args:
        segments: For each answer, the segment of each token.

    Returns:
        The segment of each token `[N]`, and the number of segments of each answer.
    """
    counts = [int(own[-1]) + 1 if len(own) else 0 for own in segments]
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)[: len(counts)]
    joined = [own + start for own, start in zip(segments, starts, strict=True)]
    return np.concatenate(joined).astype(np.int64) if joined else np.zeros(0, np.int64), counts


def segment_votes(
    predicted: NDArray[np.integer], true: NDArray[np.integer], segments: Ints, by_id: Sequence[bytes | None]
) -> tuple[Ints, Ints]:
    """What an expert predicts in each segment, as a number that is the same for equal bytes of any tokenizer.

    The prediction is right if every token is. Else it is the bytes of the likeliest tokens, each given the true ones
    before it.

    Args:
        predicted: The likeliest token at each position, `[N]`.
        true: The answer's tokens, `[N]`.
        segments: The segment of each token, `[N]`, rising from 0 without gaps.
        by_id: Bytes of each token; None for special ones.

    Returns:
        The expert's vote and the true one in each segment, `[S]`. They are hashes, so that of votes that tie the one
        that wins has nothing to do with the truth.
    """
    count = int(segments[-1]) + 1 if len(segments) else 0
    starts = np.searchsorted(segments, np.arange(count + 1))
    wrong = np.zeros(count, bool)
    np.logical_or.at(wrong, segments, predicted != true)
    truth, votes = np.zeros(count, np.int64), np.zeros(count, np.int64)
    for s in range(count):
        span = slice(starts[s], starts[s + 1])
        right = _bytes_of(true[span], by_id)
        truth[s] = votes[s] = _number(right)
        if wrong[s]:
            said = _bytes_of(predicted[span], by_id)
            votes[s] = _number(said + CUT_OTHERWISE if said == right else said)
    return votes, truth


def _bytes_of(ids: NDArray[np.integer], by_id: Sequence[bytes | None]) -> bytes:
    found = (by_id[index] if index < len(by_id) else None for index in ids.tolist())
    return b"".join(END_BYTES if token is None else token for token in found)


def _number(text: bytes) -> int:
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big") >> 1
