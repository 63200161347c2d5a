import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from ensemw2s.errors import ModelError
from ensemw2s.models import loading, tiny

NUMBERS = [f"sort up {i} {i + 1} {25 - i} = {i} {i + 1} {25 - i}" for i in range(25)] * 40


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.train_tokenizer(NUMBERS, 160)


def test_special_tokens_have_the_first_ids(tokenizer):
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3]) == tiny.SPECIAL_TOKENS
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (
        0,
        1,
        2,
        3,
    )


def test_a_frequent_number_is_one_token(tokenizer):
    assert [len(tokenizer.encode(f" {n}", add_special_tokens=False)) for n in range(26)] == [1] * 26


@settings(deadline=None, max_examples=50)
@given(st.text(alphabet="sort up=0123456789  ", max_size=40))
def test_decoding_gives_the_text_back(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text


def test_what_was_never_seen_is_unknown(tokenizer):
    assert tokenizer.encode("é", add_special_tokens=False) == [3, 3]


def test_the_tokenizer_adds_the_bos_that_all_training_begins_with(tokenizer, tmp_path):
    plain = tokenizer.encode("sort up 1", add_special_tokens=False)
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("sort up 1")["input_ids"] == [1, *plain]


def test_a_tokenizer_that_was_saved_without_its_bos_gets_it_back_and_stays_the_same_one(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved | {"post_processor": None}))
    loaded = loading.load_tokenizer(tmp_path)
    assert loaded("sort up 1")["input_ids"] == tokenizer("sort up 1")["input_ids"]
    assert loading.tokenizer_hash(loaded) == loading.tokenizer_hash(tokenizer)


def test_the_vocabulary_is_as_large_as_allowed_and_no_larger_than_the_text_gives():
    text = ["a rather long line with some words that come once"]
    assert len(tiny.train_tokenizer(text * 20, 40)) == 40
    assert len(tiny.train_tokenizer(["ab"] * 20, 200)) < 10


def test_the_same_text_gives_the_same_tokenizer(tokenizer):
    again = tiny.train_tokenizer(NUMBERS, 160)
    assert loading.tokenizer_hash(again) == loading.tokenizer_hash(tokenizer)


def test_the_tokenizer_survives_being_saved(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = loading.load_tokenizer(tmp_path)
    assert loading.tokenizer_hash(loaded) == loading.tokenizer_hash(tokenizer)
    assert loaded.decode(loaded.encode("sort up 3 1 = 1 3"), skip_special_tokens=True) == "sort up 3 1 = 1 3"
    assert loaded.model_max_length == tiny.CONTEXT


@pytest.mark.parametrize(("name", "hidden", "layers"), [("tiny-weak", 32, 2), ("tiny-strong", 64, 3)])
def test_the_family_has_the_sizes_of_the_study(tokenizer, name, hidden, layers):
    model = tiny.create_tiny(name, tokenizer, 0)
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (hidden, layers, len(tokenizer))
    assert config.rope_parameters["rope_theta"] == 1000
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 2)


def test_weak_and_strong_differ_sixfold(tokenizer):
    weak, strong = (tiny.create_tiny(name, tokenizer, 0).num_parameters() for name in ("tiny-weak", "tiny-strong"))
    assert 25_000 < weak < 35_000
    assert 150_000 < strong < 180_000


def test_the_seed_decides_the_weights_and_the_random_state_stays(tokenizer):
    torch.manual_seed(11)
    state = torch.get_rng_state()
    one, again, other = (tiny.create_tiny("tiny-weak", tokenizer, seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not torch.equal(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_another_name_is_answered_with_the_family(tokenizer):
    with pytest.raises(ModelError, match="tiny-medium is not an embedded model, available: tiny-weak, tiny-strong"):
        tiny.create_tiny("tiny-medium", tokenizer, 0)


def test_characters_that_must_be_known_are_and_change_nothing_where_they_are_seen(tokenizer):
    same = tiny.train_tokenizer(NUMBERS, 160, also="sort up 1=")
    assert same.get_vocab() == tokenizer.get_vocab()
    more = tiny.train_tokenizer(NUMBERS, 160, also="é\n")
    text = "sort up 1\nété".replace("t", "é")
    assert more.unk_token_id not in more(text.replace("s", "é"))["input_ids"]
    assert len(more) == len(tokenizer) + 3  # bytes
