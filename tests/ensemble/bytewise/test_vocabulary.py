"""Every token has the bytes that its tokenizer decodes it to, and a prefix is a range of the table."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from ensemw2s.ensemble.bytewise.vocabulary import ByteTable, token_bytes
from ensemw2s.errors import ModelError

TEXTS = [
    "the cat 1234",
    "  two\r\n\n\nlines",
    "naïve 🙂 e\u0301",
    "שלום",
    "no newline at the end 東京",
    " the",
    "<0x41>",
]


@pytest.mark.parametrize("kind", ["bytes", "across spaces", "fall-back"])
def test_the_bytes_of_a_texts_tokens_are_the_text(tokenizers: dict[str, PreTrainedTokenizerFast], kind: str) -> None:
    tokens = token_bytes(tokenizers[kind])
    for text in TEXTS:
        ids = tokenizers[kind].encode(text, add_special_tokens=False)
        assert b"".join(tokens[i] or b"?" for i in ids) == text.encode()


@pytest.mark.parametrize("kind", ["bytes", "fall-back"])
def test_special_tokens_have_no_bytes(tokenizers: dict[str, PreTrainedTokenizerFast], kind: str) -> None:
    tokens = token_bytes(tokenizers[kind])
    assert {i for i, token in enumerate(tokens) if token is None} == set(tokenizers[kind].all_special_ids)


def test_an_added_token_that_is_not_special_is_text(tokenizers: dict[str, PreTrainedTokenizerFast]) -> None:
    tokens = token_bytes(tokenizers["fall-back"])
    assert tokens[tokenizers["fall-back"].convert_tokens_to_ids("\n\n")] == b"\n\n"


def test_ids_of_the_same_bytes_lie_side_by_side(tokenizers: dict[str, PreTrainedTokenizerFast]) -> None:
    tokenizer = tokenizers["fall-back"]
    table = ByteTable(token_bytes(tokenizer))
    edges = table.edges(b"a")
    assert list(table.ids[edges[0] : edges[1]]) == tokenizer.convert_tokens_to_ids(["<0x61>", "a"])


@pytest.mark.parametrize("prefix", [b"", b"t", b" t", b" the", b"\xf0\x9f", b"\xff", b"zz"])
def test_a_range_has_the_mass_of_all_tokens_that_start_with_its_prefix(
    tokenizers: dict[str, PreTrainedTokenizerFast], prefix: bytes
) -> None:
    tokens = token_bytes(tokenizers["fall-back"])
    table = ByteTable(tokens)
    probabilities = np.random.default_rng(0).dirichlet(np.ones(len(tokens)))
    sums, edges = table.cumulative(probabilities), table.edges(prefix)
    for byte in range(256):
        wanted = sum(
            p for p, t in zip(probabilities, tokens, strict=True) if t and t.startswith(prefix + bytes([byte]))
        )
        assert sums[edges[2 + byte]] - sums[edges[1 + byte]] == pytest.approx(wanted, abs=1e-12)
    equal = sum(p for p, t in zip(probabilities, tokens, strict=True) if t and t == prefix)
    assert sums[edges[1]] - sums[edges[0]] == pytest.approx(equal, abs=1e-12)


def test_bytes_without_a_token_are_known() -> None:
    assert ByteTable([b"a", None, b"ab", *(bytes([b]) for b in range(98, 256))]).missing() == list(range(97))


def test_a_tokenizer_that_drops_spaces_is_refused() -> None:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(ModelError, match="is decoded by WordPiece; a mixture over bytes knows"):
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
