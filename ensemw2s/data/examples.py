"""The shape of an example, and what makes two examples the same one.

Everything that a source yields becomes a row of `EXAMPLE_SCHEMA`, and everything later reads it. Identity (ids, content
keys, derived seeds) has its own module because splits, corpus and labels must agree on it to the byte.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Container, Iterable

import pyarrow as pa

from ensemw2s.data.rows import Fields

EXAMPLE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("answer", pa.string()),
        ("difficulty", pa.float64()),
        ("choices", pa.list_(pa.string())),
    ]
)


def derive_seed(*parts: object) -> int:
    """A seed in [0, 2**31) that depends on the text of `parts` alone: the same in every process, on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") % 2**31


def content_key(prompt: str) -> str:
    """What two examples must not share: the SHA-256 (hex) of the prompt with single spaces. Case counts."""
    return _hashed(unicodedata.normalize("NFC", prompt))


def folded_key(prompt: str) -> str:
    """The same without case: what text for pre-training must not share with a test prompt."""
    return _hashed(unicodedata.normalize("NFC", prompt).casefold())


def example_id(prompt: str, taken: Container[str] = ()) -> str:
    """The id of an example whose source gives none: the first 16 hex digits of a hash of its content.

    Case counts only where the id is taken by a prompt that differs in case alone.
    """
    first = folded_key(prompt)[:16]
    return content_key(prompt)[:16] if first in taken else first


def _hashed(text: str) -> str:
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()


def example_table(rows: Iterable[Fields]) -> pa.Table:
    """Rows with the keys of `EXAMPLE_SCHEMA` as a table."""
    return pa.Table.from_pylist(list(rows), schema=EXAMPLE_SCHEMA)
