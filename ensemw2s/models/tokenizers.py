"""Tokenizers: a folder or hub id comes in, a tokenizer that can pad and end an answer goes out, with its identity.

The experts of an ensemble vote on token ids, so their tokenizers must be the same one; what "the same" means is
defined here, apart from the weights, because data, ensembles and artifacts all ask.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from ensemw2s.errors import ModelError
from ensemw2s.models.hub import Location, locate
from ensemw2s.models.tiny import add_bos, is_tiny_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "vocab.bpe")

# Texts on which tokenizers of the same vocabulary still differ when their normalisation or splitting does.
PROBES = (
    "Sort 3, 11 and 2 in descending order: 11 > 3 > 2",
    "  two  spaces\n\ttab, CamelCase don't 3.14159 café naïve",
    "def f(x):\n    return x ** 2  # 東京 🙂",
)


def load_tokenizer(path: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Loads a tokenizer; one without a padding token pads with its end-of-sequence token.

    Args:
        path: Folder or hub id.
        revision: Git revision on the hub.

    Raises:
        ModelError: If there is none, it is damaged, or it has no end-of-sequence token (answers end with it).
    """
    location = locate(path, revision)
    if location.is_folder and not any((Path(location.path) / name).exists() for name in TOKENIZER_FILES):
        beside = Path(location.path).resolve().parent.parent / "tokenizer"
        advice = f"expected one of {', '.join(TOKENIZER_FILES)}"
        if any((beside / name).exists() for name in TOKENIZER_FILES):  # a member of an ensemble, which has one for all
            advice = f"this is a member of an ensemble; to use it alone, copy the files of {beside} into it"
        raise ModelError(f"folder {path} holds no tokenizer; {advice}")
    tokenizer = _read(location)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of {path} has no end-of-sequence token; answers could never end")
    if is_tiny_tokenizer(tokenizer):
        add_bos(tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Identity of a tokenizer: equal hashes give equal token ids for every text, and end answers with the same id.

    Covers vocabulary, merges, added tokens, begin and end tokens and the ids of probe texts. Leaves out what does not
    change ids: padding (token and side), truncation, chat template, and the version that wrote the files.

    Returns:
        SHA-256, 64 hexadecimal digits.
    """
    text = json.dumps(_identity(tokenizer), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def check_same_tokenizer(tokenizers: Sequence[tuple[str, PreTrainedTokenizerBase]]) -> None:
    """Checks that models can vote on token ids together.

    Args:
        tokenizers: Name of the model and its tokenizer.

    Raises:
        ModelError: Naming the first two that differ and in what.
    """
    if not tokenizers:
        return
    first_name, first = tokenizers[0]
    expected = _identity(first)
    for name, tokenizer in tokenizers[1:]:
        actual = _identity(tokenizer)
        if actual != expected:
            raise ModelError(
                f"{name} and {first_name} have different tokenizers: {_difference(actual, expected)}. "
                "Members that are saved with one tokenizer vote on token ids, so all must have it. Leave it out, and "
                "members of different tokenizers vote over bytes (docs/bytewise.md)"
            )


def _read(location: Location) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer  # costs seconds to import, with torch

    try:
        return AutoTokenizer.from_pretrained(location.path, **location.options())
    except Exception as error:  # tokenizers raises plain Exception for a damaged file
        reason = " ".join(str(error).split())
        if library := _missing_library(location, reason):
            raise ModelError(
                f"the tokenizer of {location.path} needs a package that is not installed: pip install {library}"
            ) from error
        raise ModelError(f"the tokenizer of {location.path} cannot be loaded: {reason[:300]}") from error


def _missing_library(location: Location, reason: str) -> str | None:
    """The package whose absence is why a tokenizer could not be read; None if that is not why.

    transformers asks for tiktoken, whatever the file, where it finds neither. A file of SentencePiece is a protocol
    buffer and begins with a line feed; one of tiktoken is text.
    """
    names = [name for name in ("sentencepiece", "tiktoken") if name in reason.lower() and find_spec(name) is None]
    for file in ("tokenizer.model", "spiece.model"):
        path = Path(location.path) / file
        if names and location.is_folder and path.exists():
            with path.open("rb") as stream:
                names = ["sentencepiece" if stream.read(1) == b"\n" else "tiktoken"]
    return next((name for name in names if find_spec(name) is None), None)


class _Identity(TypedDict):
    """What makes two tokenizers the same one: tokens by id, merges, special tokens, and how texts are split."""

    vocabulary: list[tuple[str, int]]
    merges: list[list[str]]
    added: list[tuple[int, str]]
    bos: int | None
    eos: int | None
    probes: list[list[int]]


def _identity(tokenizer: PreTrainedTokenizerBase) -> _Identity:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    merges = json.loads(backend.to_str())["model"].get("merges") if backend is not None else None
    return _Identity(
        vocabulary=sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]),
        merges=[list(pair) if not isinstance(pair, str) else pair.split(" ", 1) for pair in merges or []],
        added=sorted((index, str(token)) for index, token in tokenizer.added_tokens_decoder.items()),
        bos=tokenizer.bos_token_id,
        eos=tokenizer.eos_token_id,
        # the tiny family's BOS is not counted: tokenizers of older runs were saved without it
        probes=[tokenizer.encode(text, add_special_tokens=not is_tiny_tokenizer(tokenizer)) for text in PROBES],
    )


def _difference(actual: _Identity, expected: _Identity) -> str:
    """What differs first, in words."""
    if len(actual["vocabulary"]) != len(expected["vocabulary"]):
        return f"{len(actual['vocabulary'])} against {len(expected['vocabulary'])} tokens"
    for token, wanted in zip(actual["vocabulary"], expected["vocabulary"], strict=True):
        if token != wanted:
            return f"token {token[1]} is {token[0]!r} against {wanted[0]!r}"
    for one, other, label in (
        (actual["eos"], expected["eos"], "end-of-sequence token"),
        (actual["bos"], expected["bos"], "begin-of-sequence token"),
    ):
        if one != other:
            return f"the {label} is {one} against {other}"
    return "same vocabulary, but they split text differently"
