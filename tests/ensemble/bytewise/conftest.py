"""Tokenizers of every kind, made here, and a table that is a language model."""

import os

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

from collections.abc import Sequence

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ensemw2s.ensemble.bytewise.tree import Fork

CORPUS = ["the cat sat on the mat, the hat of the cat", "sort 3 11 2 = 2 3 11", "naïve café 🙂 אב\r\n  two  spaces"] * 3


def byte_level(size: int, *, across_spaces: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE with all 256 bytes, one digit at a time, merges across spaces if asked."""
    tokenizer = Tokenizer(models.BPE())
    steps = [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(False, use_regex=not across_spaces),
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<pad>", "<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")


def byte_fallback() -> PreTrainedTokenizerFast:
    """SentencePiece's way: ▁ for a space, bytes as <0x..>, so that `a` has two ids, and an added token with spaces."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    words = ["a", "b", "t", "h", "e", "▁", "th", "▁t", "▁th", "▁the", "▁▁", "é"]
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<bos>", "<eos>", *bytes_, *words])}
    merges = [("t", "h"), ("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("▁", "▁")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_tokens([AddedToken("\n\n", normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", bos_token="<bos>", unk_token="<unk>")


class TableRows:
    """A language model with a context of two tokens: p(next) is looked up by the last two, sharp and random."""

    def __init__(self, vocabulary: int, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.table = generator.dirichlet(np.full(vocabulary, 0.5), size=(7, vocabulary))
        self.rows: dict[int, list[int]] = {}
        self.made = 0

    def next(self, ids: Sequence[int]) -> np.ndarray:
        return self.table[(ids[-2] if len(ids) > 1 else 0) % 7, ids[-1]]

    def start(self, ids: Sequence[int]) -> tuple[int, np.ndarray]:
        self.made += 1
        self.rows[self.made] = list(ids)
        return self.made, self.next(ids)

    def extend(self, forks: Sequence[Fork], gone: Sequence[int]) -> list[tuple[int, np.ndarray]]:
        made = [self.start([*self.rows[fork.row], fork.token]) for fork in forks]
        self.free(gone)
        return made

    def free(self, rows: Sequence[int]) -> None:
        for row in rows:
            del self.rows[row]

    def full(self, row: int) -> bool:
        return False


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    return {
        "bytes": byte_level(300),
        "across spaces": byte_level(330, across_spaces=True),
        "fall-back": byte_fallback(),
    }


@pytest.fixture(scope="session")
def table_rows() -> type[TableRows]:
    return TableRows
