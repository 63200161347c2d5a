"""A prompt's ids and tail are the prompt, and its last word is left open."""

import copy

import pytest
from transformers import PreTrainedTokenizerFast

from ensemw2s.ensemble.bytewise.prompts import chat, heal
from ensemw2s.ensemble.bytewise.vocabulary import ByteTable, token_bytes
from ensemw2s.errors import DataError


@pytest.mark.parametrize(
    ("text", "tail"),
    [
        ("the cat sat", b" sat"),
        ("sort 3 11 =", b" ="),
        ("the cat ", b" cat "),
        ("a\nb", b"\nb"),
        ("the 🙂", " 🙂".encode()),
    ],
)
def test_the_last_word_and_the_space_before_it_stay_bytes(
    tokenizers: dict[str, PreTrainedTokenizerFast], text: str, tail: bytes
) -> None:
    tokenizer = tokenizers["bytes"]
    table = ByteTable(token_bytes(tokenizer))
    prompt = heal(tokenizer, table, text)
    assert prompt.tail == tail
    assert b"".join(table.by_id[i] or b"" for i in prompt.ids) + tail == text.encode()


def test_one_word_keeps_its_first_token_and_a_long_one_its_beginning(
    tokenizers: dict[str, PreTrainedTokenizerFast],
) -> None:
    tokenizer = tokenizers["bytes"]
    table = ByteTable(token_bytes(tokenizer))
    assert len(heal(tokenizer, table, "hatxyz").ids) == 1
    assert len(heal(tokenizer, table, "x" * 200).tail) == 32


def test_a_special_token_in_a_users_text_is_text(tokenizers: dict[str, PreTrainedTokenizerFast]) -> None:
    tokenizer = tokenizers["bytes"]
    table = ByteTable(token_bytes(tokenizer))
    prompt = heal(tokenizer, table, "the <eos> cat")
    assert tokenizer.eos_token_id not in prompt.ids


def test_prompts_that_cannot_be_read_are_refused(tokenizers: dict[str, PreTrainedTokenizerFast]) -> None:
    tokenizer = tokenizers["bytes"]
    table = ByteTable(token_bytes(tokenizer))
    with pytest.raises(DataError, match="the prompt '' has no tokens"):
        heal(tokenizer, table, "")
    with pytest.raises(DataError, match="is not valid Unicode: surrogates not allowed at 1"):
        heal(tokenizer, table, "a\ud800")
    lacking = ByteTable([None if token == b"z" else token for token in table.by_id])
    with pytest.raises(DataError, match="as 'z': it has no tokens for these characters"):
        heal(tokenizer, lacking, "the z")


def test_a_conversation_is_read_in_the_tokenizers_own_template_and_users_write_no_control_tokens(
    tokenizers: dict[str, PreTrainedTokenizerFast],
) -> None:
    tokenizer = copy.deepcopy(tokenizers["bytes"])
    messages = [{"role": "user", "content": "the <eos> cat"}]
    with pytest.raises(DataError, match="has no chat template; give a text, or a Prompt for each voice"):
        chat(tokenizer, messages)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<eos>{% endfor %}answer:"
    prompt = chat(tokenizer, messages)
    assert list(prompt.ids).count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(prompt.ids) == "the <eos> cat<eos>answer:"
    assert prompt.tail == b""
