"""Text that grows: never a broken character, never the beginning of a stop string, and nothing is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ensemw2s.serving.text import OwnBytes, TextStream, TokenBytes


@pytest.fixture(scope="module")
def bytewise() -> PreTrainedTokenizerFast:
    """A token for every byte, so that most characters take several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core)


def pieces(tokenizer, text: str, stop=(), ended=None, prefix="", size=1, each=True) -> list[str]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    stream = TextStream(tokenizer, stop, prefix)
    shown = [stream.push(ids[i : i + size], each=each)[0] for i in range(0, len(ids), size)]
    return [*shown, stream.finish(ended)]


@given(text=st.text(st.characters(codec="utf-8"), max_size=20), size=st.integers(1, 4), each=st.booleans())
def test_the_pieces_are_the_text_and_no_character_is_broken(bytewise, text, size, each):
    found = pieces(bytewise, text, size=size, each=each)
    assert "".join(found) == text
    if "\ufffd" not in text:
        assert all("\ufffd" not in one for one in found)


def test_what_each_token_added_is_told(bytewise):
    stream = TextStream(bytewise)
    ids = bytewise("aé", add_special_tokens=False)["input_ids"]
    assert stream.push(ids) == ("aé", ["a", "", "é"])
    assert TextStream(bytewise).push(ids, each=False) == ("aé", ["aé"])


def test_the_text_ends_before_the_stop_string_and_no_part_of_it_was_shown(bytewise):
    found = pieces(bytewise, "one, tEND", ["END", "zzz"], "END")
    assert "".join(found) == "one, t"


def test_what_only_looked_like_a_stop_string_is_shown(bytewise):
    assert "".join(pieces(bytewise, "EEN EN", ["END"])) == "EEN EN"


@pytest.mark.parametrize(("text", "shown"), [(" 1 2", "1 2"), ("1 2", "1 2"), (" ", ""), ("", "")])
def test_a_prefix_is_left_out_where_it_is_there(bytewise, text, shown):
    assert "".join(pieces(bytewise, text, prefix=" ")) == shown
    assert "".join(pieces(bytewise, text, ["x"], prefix=" ")) == shown


def test_a_longer_prefix_is_left_out_as_a_whole_or_not_at_all(bytewise):
    assert "".join(pieces(bytewise, "Answer: 5", prefix="Answer: ")) == "5"
    assert "".join(pieces(bytewise, "Answers", prefix="Answer: ")) == "Answers"


def test_end_tokens_are_no_text(tokenizer):
    stream = TextStream(tokenizer)
    shown, added = stream.push([tokenizer.eos_token_id])
    assert (shown + stream.finish(None), added) == ("", [""])


def byte_level(tokenizer, text: str) -> list[tuple[str, bytes]]:
    look_up = TokenBytes(tokenizer)
    return [look_up(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]


def test_parts_of_a_character_have_bytes_of_their_own(bytewise, tokenizer):
    text = "sort 😀 é"
    found = byte_level(bytewise, text)
    assert b"".join(raw for _, raw in found).decode() == text
    assert ("\\xf0", b"\xf0") in found
    assert TokenBytes(tokenizer)(tokenizer.eos_token_id) == (tokenizer.eos_token, b"")


@pytest.mark.parametrize("text", ["sort 😀 1", "é", "1 2 3", "\u00a0😀"])
def test_the_bytes_that_tokens_add_are_the_text(bytewise, text):
    stream, own = TextStream(bytewise), OwnBytes(TokenBytes(bytewise))
    ids = bytewise(text, add_special_tokens=False)["input_ids"]
    _, added = stream.push(ids)
    found = [own.push(token, new) for token, new in zip(ids, added, strict=True)]
    assert bytes(byte for _, raw in found for byte in raw).decode() == text
    assert all(raw for _, raw in found)


def test_a_vocabulary_of_characters_has_spaces_and_single_bytes():
    pieces = {"<unk>": 0, "<0xF0>": 1, "▁sort": 2, "é": 3}
    own = Tokenizer(models.WordLevel(pieces, unk_token="<unk>"))
    own.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    look_up = TokenBytes(PreTrainedTokenizerFast(tokenizer_object=own, unk_token="<unk>"))
    assert [look_up(token) for token in range(4)] == [
        ("<unk>", b""), ("\\xf0", b"\xf0"), (" sort", b" sort"), ("é", "é".encode())
    ]  # fmt: skip
