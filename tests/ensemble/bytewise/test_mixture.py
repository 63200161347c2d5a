"""Models of different tokenizers predict a text together; the same model with other ids changes nothing."""

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ensemw2s.ensemble.bytewise.mixture import ByteMixture, Voice, VoiceModel
from ensemw2s.ensemble.bytewise.prompts import Prompt
from ensemw2s.ensemble.bytewise.vocabulary import ByteTable
from ensemw2s.ensemble.model import EnsembleForCausalLM
from ensemw2s.ensemble.sampling import Sampling
from ensemw2s.errors import ConfigError, DataError, ModelError

Make = Callable[..., LlamaForCausalLM]
PROMPTS = ["the cat sat on", "sort 3 11 2 ="]


def model_of(make_model: Make, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    model = make_model(seed, vocabulary=len(tokenizer), context=128)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


def part(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, weight: float = 1.0) -> VoiceModel:
    return VoiceModel(EnsembleForCausalLM([model], [1.0]), tokenizer, weight)


def permuted(tokenizer: PreTrainedTokenizerFast, order: list[int]) -> PreTrainedTokenizerFast:
    """The same tokenizer whose token i has the id order[i]."""
    tree = json.loads(tokenizer.backend_tokenizer.to_str())
    tree["model"]["vocab"] = {token: order[index] for token, index in tree["model"]["vocab"].items()}
    for added in tree["added_tokens"]:
        added["id"] = order[added["id"]]
    tree["added_tokens"].sort(key=lambda added: added["id"])
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(tree)), eos_token="<eos>", pad_token="<pad>"
    )


@pytest.fixture(scope="module")
def pair(tokenizers: dict[str, PreTrainedTokenizerFast], make_model: Make) -> list[VoiceModel]:
    """Two models of different tokenizers."""
    kinds = [tokenizers["bytes"], tokenizers["fall-back"]]
    return [part(model_of(make_model, kind, seed), kind, 1.0 + seed) for seed, kind in enumerate(kinds)]


def test_one_model_twice_with_permuted_ids_gives_the_texts_probabilities_of_one(
    tokenizers: dict[str, PreTrainedTokenizerFast], make_model: Make
) -> None:
    tokenizer = tokenizers["across spaces"]
    order = np.random.default_rng(0).permutation(len(tokenizer)).tolist()
    model, other = model_of(make_model, tokenizer, 0), model_of(make_model, tokenizer, 0)
    with torch.no_grad():
        other.get_input_embeddings().weight[order] = model.get_input_embeddings().weight.clone()
    twin = permuted(tokenizer, order)
    other.generation_config.eos_token_id = twin.eos_token_id
    assert tokenizer("the cat").input_ids != twin("the cat").input_ids
    one = ByteMixture.of_models([part(model, tokenizer)])
    both = ByteMixture.of_models([part(model, tokenizer, 2.0), part(other, twin, 1.0)])
    answers = [" the mat", " 2 3 11 🙂"]
    for alone, together in zip(one.score(PROMPTS, answers), both.score(PROMPTS, answers), strict=True):
        assert together.logprobs == pytest.approx(alone.logprobs, abs=1e-4)
        assert together.voice_logprobs[1] == pytest.approx(together.voice_logprobs[0], abs=1e-4)
    texts = [[a.text for a in m.generate(PROMPTS, max_new_bytes=16)] for m in (one, both)]
    assert texts[0] == texts[1]


def test_a_byte_has_the_weighted_mean_of_the_voices_probabilities(pair: list[VoiceModel]) -> None:
    [answer] = ByteMixture.of_models(pair).score(["the cat sat"], [" on"])
    assert answer.shares == pytest.approx([1 / 3, 2 / 3])
    assert np.exp(answer.logprobs) == pytest.approx(answer.shares @ np.exp(answer.voice_logprobs))
    assert len(answer.logprobs) == 4
    assert answer.bits_per_byte == pytest.approx(-answer.logprob / math.log(2) / 3)


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [None, Sampling(temperature=1.0), Sampling(temperature=0.8, top_k=5, top_p=0.9)])
def test_answers_are_valid_and_have_the_probability_that_scoring_gives(
    pair: list[VoiceModel], sampling: Sampling | None
) -> None:
    mixture = ByteMixture.of_models(pair, texts=2)
    prompts = [*PROMPTS, "naïve café"]
    answers = mixture.generate(prompts, max_new_bytes=11, sampling=sampling, seed=3)
    again = mixture.generate(prompts[:1], max_new_bytes=11, sampling=sampling, seed=3)
    assert again[0].text == answers[0].text
    for prompt, answer in zip(prompts, answers, strict=True):
        assert len(answer.text.encode()) <= 11
        [scored] = mixture.score([prompt], [answer.text], end=answer.ended)
        assert scored.logprobs == pytest.approx(answer.logprobs, abs=1e-3)
    for voice in mixture.voices:
        assert len(voice.rows._free) == voice.rows.slots  # type: ignore[attr-defined]


def test_few_contexts_are_enough_to_write_and_leave_no_row_taken(pair: list[VoiceModel]) -> None:
    mixture = ByteMixture.of_models(pair, contexts=2, texts=2)
    scored = mixture.score(PROMPTS, [" qzx 🙂 the mat", "\r\n  e\u0301 אב"])
    assert all(np.isfinite(answer.logprobs).all() for answer in scored)
    for voice in mixture.voices:
        assert len(voice.rows._free) == voice.rows.slots == 4  # type: ignore[attr-defined]


def test_an_end_is_a_symbol_and_its_mass_is_that_of_the_stop_tokens(
    tokenizers: dict[str, PreTrainedTokenizerFast], make_model: Make
) -> None:
    tokenizer = tokenizers["bytes"]
    model = model_of(make_model, tokenizer, 0)
    ids = tokenizer("the cat").input_ids
    with torch.no_grad():
        wanted = model(torch.tensor([ids])).logits[0, -1].double().softmax(-1)
    [scored] = ByteMixture.of_models([part(model, tokenizer)]).score([[Prompt(ids)]], [""])
    text = 1 - wanted[tokenizer.pad_token_id]  # padding is neither text nor an end
    assert scored.logprob == pytest.approx(math.log(wanted[tokenizer.eos_token_id] / text), abs=1e-5)


def table_voice(rows: Any, tokens: list[bytes | None], share: float = 1.0) -> Voice:
    return Voice("table", rows, None, ByteTable(tokens), [0], share)  # type: ignore[arg-type]


def test_a_voice_that_cannot_spell_a_byte_sits_out_from_there(table_rows: Any) -> None:
    mixture = ByteMixture([table_voice(table_rows(3), [None, b"a", b"b"]), table_voice(table_rows(2), [None, b"a"])])
    [answer] = mixture.score([[Prompt([1]), Prompt([1])]], ["aba"])
    assert np.isfinite(answer.voice_logprobs[0]).all()
    assert list(np.isfinite(answer.voice_logprobs[1])) == [True, False, False, False]
    assert answer.choices[1].tolist()[2:] == [-1, -1]
    assert answer.logprobs[2] == pytest.approx(answer.voice_logprobs[0][2])
    with pytest.raises(DataError, match="no model has tokens for byte 0x7a behind b'a'"):
        mixture.score([[Prompt([1]), Prompt([1])]], ["az"])


def test_a_prompt_that_a_voice_cannot_spell_is_refused_or_it_sits_out(table_rows: Any) -> None:
    voices = [table_voice(table_rows(3), [None, b"a", b"b"]), table_voice(table_rows(2), [None, b"a"])]
    prompt = [Prompt([1], b"b"), Prompt([1], b"b")]
    with pytest.raises(DataError, match="gives byte 0x62 no probability here"):
        ByteMixture(voices).score([prompt], ["a"])
    [answer] = ByteMixture(voices, sit_out=True).score([prompt], ["a"])
    assert answer.choices[1].tolist() == [-1, -1]


def test_half_a_character_is_left_out(table_rows: Any) -> None:
    rows = table_rows(4)
    rows.table[:] = [0.0, 0.0, 1.0, 0.0]
    rows.table[..., 2, :] = [0.0, 0.0, 0.0, 1.0]
    mixture = ByteMixture([table_voice(rows, [None, b"x", b"\xc3", b"\xa9"])])
    [answer] = mixture.generate([[Prompt([1])]], max_new_bytes=5)
    assert (answer.text, len(answer.logprobs), answer.ended) == ("éé", 4, False)


def test_words_have_the_votes_of_their_bytes(pair: list[VoiceModel]) -> None:
    [answer] = ByteMixture.of_models(pair).score(["the cat sat"], [" on the 🙂"])
    words = answer.words()
    assert [word.text for word in words] == [" on", " the", " 🙂"]
    assert sum(word.logprob for word in words) == pytest.approx(answer.logprobs[:-1].sum())
    assert {round(word.agreement, 3) for word in words} <= {0.0, 0.333, 0.667, 1.0}
    hit = answer.choices[0, 3:7] == np.frombuffer(b" the", dtype=np.uint8)
    assert (words[1].agreement in (pytest.approx(1 / 3), pytest.approx(1.0))) == bool(hit.all())


def test_each_voice_reads_a_conversation_in_its_own_template(pair: list[VoiceModel]) -> None:
    voices = [replace(voice, tokenizer=copy.deepcopy(voice.tokenizer)) for voice in pair]
    chats = [[{"role": "user", "content": "the cat"}]]
    with pytest.raises(DataError, match="has no chat template"):
        ByteMixture.of_models(voices).score(chats, [" sat"])
    for voice, mark in zip(voices, "xy", strict=True):
        voice.tokenizer.chat_template = mark + "{{ messages[0]['content'] }}"
    mixture = ByteMixture.of_models(voices)
    rendered = [
        Prompt(voice.tokenizer(mark + "the cat", add_special_tokens=False).input_ids)
        for voice, mark in zip(voices, "xy", strict=True)
    ]
    [by_template], [by_hand] = mixture.score(chats, [" sat"]), mixture.score([rendered], [" sat"])
    assert by_template.logprobs == pytest.approx(by_hand.logprobs)
    assert mixture.generate(chats, max_new_bytes=4, sampling=Sampling(temperature=1.0))[0].text
    with pytest.raises(DataError, match="a prompt is given for 1 voices; expected one for each, member-0 included"):
        mixture.score([rendered[:1]], [" sat"])


def test_settings_that_make_no_sense_are_refused(pair: list[VoiceModel]) -> None:
    with pytest.raises(ConfigError, match="epsilon is 1; expected at least 0 and less than 1"):
        ByteMixture.of_models(pair, epsilon=1)
    with pytest.raises(ConfigError, match="contexts is 1 and texts is 4; expected at least 2 contexts and 1 text"):
        ByteMixture.of_models(pair, contexts=1)
    with pytest.raises(ConfigError, match="max_new_bytes is 0"):
        ByteMixture.of_models(pair).generate(["a"], max_new_bytes=0)
    with pytest.raises(DataError, match="1 prompts and 2 answers"):
        ByteMixture.of_models(pair).score(["a"], ["b", "c"])


def test_other_rules_than_probability_are_refused(pair: list[VoiceModel], make_model: Make) -> None:
    voting = VoiceModel(EnsembleForCausalLM([make_model(0)], [1.0], "vote"), pair[0].tokenizer, 1.0)
    with pytest.raises(ModelError, match="are combined by vote; a mixture over bytes knows the rule probability only"):
        ByteMixture.of_models([voting])
    small = VoiceModel(EnsembleForCausalLM([make_model(0)], [1.0]), pair[0].tokenizer, 1.0)
    with pytest.raises(ModelError, match=r"member-0 knows 64 tokens, its tokenizer has \d+"):
        ByteMixture.of_models([small])
