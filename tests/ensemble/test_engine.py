from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from ensemw2s.ensemble.combine import agreement, combine
from ensemw2s.ensemble.engine import decode
from ensemw2s.ensemble.members import load_members
from ensemw2s.ensemble.model import EnsembleForCausalLM
from ensemw2s.ensemble.requests import Generation
from ensemw2s.ensemble.score import score
from ensemw2s.errors import ConfigError, DataError, ModelError
from ensemw2s.models import loading

WEIGHTS = [1.0, 2.0, 1.5]
RULES = ["probability", "log_probability", "vote"]
ENDS = [2, 7, 19, 33, 60]  # several end tokens, so that rows leave the batch at different steps
GREEDY = {"max_new_tokens": 8, "eos_ids": ENDS, "batch_size": 4}
SAMPLED = {**GREEDY, "temperature": 1.0, "top_k": 20, "top_p": 0.95, "seed": 5}


@pytest.fixture(scope="module")
def ensemble(experts) -> EnsembleForCausalLM:
    return EnsembleForCausalLM(experts, WEIGHTS)


@pytest.fixture(scope="module")
def many(prompts) -> list[list[int]]:
    generator = np.random.default_rng(1)
    return [generator.integers(3, 64, size=int(n)).tolist() for n in generator.integers(1, 20, size=20)]


def tokens(generations: list[Generation]) -> list[list[int]]:
    return [generation.token_ids for generation in generations]


@pytest.mark.parametrize("rule", RULES)
def test_greedy_output_of_full_members_is_that_of_the_naive_reference(experts, many, naive_greedy, rule):
    model = EnsembleForCausalLM(experts, WEIGHTS, rule)
    expected = [naive_greedy(experts, WEIGHTS, prompt, 8, ENDS, rule) for prompt in many]
    assert tokens(decode(model, many, **GREEDY)) == expected
    assert len({len(answer) for answer in expected}) > 4  # the test means something: rows do leave at many steps


def test_greedy_output_of_adapters_is_that_of_the_naive_reference(adapter_folders, many, naive_greedy):
    model = EnsembleForCausalLM(load_members(adapter_folders), WEIGHTS)
    merged = [loading.load_trained(folder).merge_and_unload() for folder in adapter_folders]
    expected = [naive_greedy(merged, WEIGHTS, prompt, 8, ENDS) for prompt in many]
    assert tokens(decode(model, many, **GREEDY)) == expected
    assert expected != [naive_greedy(merged[:1], [1], prompt, 8, ENDS) for prompt in many]


def architectures() -> dict[str, Callable[[], PreTrainedModel]]:
    """Models that count positions, keep a cache or give logits in another way than Llama."""
    small = {"hidden_size": 32, "num_attention_heads": 4, "vocab_size": 64, "initializer_range": 0.3}
    layers = {**small, "num_hidden_layers": 2, "num_key_value_heads": 2, "intermediate_size": 64}
    return {
        "learned positions": lambda: GPT2LMHeadModel(
            GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=64, initializer_range=0.3)
        ),
        "no positions": lambda: BloomForCausalLM(BloomConfig(**small, n_layer=2)),
        "sliding window": lambda: MistralForCausalLM(MistralConfig(**layers, sliding_window=6)),
        "convolutions": lambda: Lfm2ForCausalLM(Lfm2Config(**layers, layer_types=["conv", "full_attention"])),
    }


@pytest.mark.parametrize("kind", [*architectures(), "mixed"])
def test_greedy_output_of_other_architectures_is_that_of_the_naive_reference(kind, experts, prompts, naive_greedy):
    kinds = list(architectures()) if kind == "mixed" else [kind, kind]
    models = []
    for seed, one in enumerate(kinds):
        torch.manual_seed(seed)
        models.append(architectures()[one]().eval())
    models = [*models, experts[0]] if kind == "mixed" else models
    weights = [1.0 + i for i in range(len(models))]
    expected = [naive_greedy(models, weights, prompt, 8, ENDS) for prompt in prompts]
    assert tokens(decode(EnsembleForCausalLM(models, weights), prompts, **GREEDY)) == expected


def test_greedy_output_is_that_of_generate(ensemble, many):
    for prompt, answer in zip(many, tokens(decode(ensemble, many, **GREEDY)), strict=True):
        output = ensemble.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False, eos_token_id=ENDS)
        assert output[0, len(prompt) :].tolist() == answer


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("batch_size", [1, 7, 20])
def test_the_batch_around_a_prompt_does_not_matter(ensemble, many, options, batch_size):
    expected = decode(ensemble, many, **options)
    order = np.random.default_rng(2).permutation(len(many))
    shuffled = decode(ensemble, [many[i] for i in order], **{**options, "batch_size": batch_size})
    for i, generation in zip(order, shuffled, strict=True):
        assert generation.token_ids == expected[i].token_ids
        np.testing.assert_allclose(generation.logprobs, expected[i].logprobs, atol=1e-4)


def test_a_generation_ends_at_the_first_end_token_or_at_the_length(ensemble, many):
    for generation in decode(ensemble, many, **GREEDY):
        ended = generation.token_ids[-1] in ENDS
        assert generation.finish_reason == ("stop" if ended else "length")
        assert ended or len(generation.token_ids) == 8
        assert not set(generation.token_ids[:-1]) & set(ENDS)


def test_without_end_tokens_every_answer_has_the_full_length(ensemble, many):
    result = decode(ensemble, many, **{**GREEDY, "eos_ids": []})
    assert {(len(g.token_ids), g.finish_reason) for g in result} == {(8, "length")}


def test_what_is_recorded_is_what_the_members_said(ensemble, many):
    for prompt, generation in zip(many[:6], decode(ensemble, many, **SAMPLED, distributions=5), strict=False):
        n = len(generation.token_ids)
        with torch.no_grad():
            members = ensemble.member_log_probs(torch.tensor([prompt + generation.token_ids]))[:, 0, -n - 1 : -1]
        combined = combine(members, WEIGHTS)
        taken = torch.tensor(generation.token_ids)
        choices = members.argmax(-1)
        assert generation.votes.shape == (n, 3)
        np.testing.assert_array_equal(generation.votes, choices.T)
        np.testing.assert_allclose(generation.agreement, agreement(choices, taken, WEIGHTS), atol=1e-6)
        np.testing.assert_allclose(generation.logprobs, combined.gather(-1, taken[:, None])[:, 0], atol=1e-4)
        np.testing.assert_array_equal(generation.top_tokens, combined.topk(5).indices)
        np.testing.assert_allclose(generation.top_logprobs, combined.topk(5).values, atol=1e-4)


def test_distributions_are_left_out_unless_asked_for(ensemble, prompts):
    assert all(g.top_tokens is None and g.top_logprobs is None for g in decode(ensemble, prompts, **GREEDY))


def test_equal_prompts_get_samples_of_their_own_with_seeds_of_their_own(ensemble, prompts):
    same = [prompts[2]] * 8
    assert len({tuple(t) for t in tokens(decode(ensemble, same, **SAMPLED))}) == 1
    sampled = tokens(decode(ensemble, same, **{**SAMPLED, "seed": range(8)}))
    assert len({tuple(t) for t in sampled}) > 3
    assert sampled[5] == tokens(decode(ensemble, same[:1], **{**SAMPLED, "seed": 5}))[0]


def test_samples_follow_the_combined_distribution(ensemble, prompts):
    count = 4000
    first = decode(
        ensemble,
        [prompts[1]] * count,
        max_new_tokens=1,
        eos_ids=[],
        batch_size=1000,
        temperature=1.0,
        seed=range(count),
    )
    with torch.no_grad():
        expected = ensemble(torch.tensor([prompts[1]])).logits[0, -1].exp().numpy()
    seen = np.bincount([g.token_ids[0] for g in first], minlength=64) / count
    assert np.abs(seen - expected).max() < 4 * np.sqrt(0.25 / count)


def test_a_plain_model_decodes_and_scores_as_an_ensemble_of_one(experts, prompts, naive_greedy):
    result = decode(experts[0], prompts, **GREEDY)
    assert tokens(result) == [naive_greedy(experts[:1], [1], prompt, 8, ENDS) for prompt in prompts]
    assert all((g.agreement == 1).all() and g.votes.shape[1] == 1 for g in result)
    assert all(s.correct.all() for s in score(experts[0], prompts, tokens(result), pad_id=0, batch_size=4))


@pytest.mark.parametrize("rule", RULES)
def test_scores_are_those_of_each_answer_alone(experts, many, rule):
    model = EnsembleForCausalLM(experts, WEIGHTS, rule)
    generator = np.random.default_rng(3)
    answers = [generator.integers(0, 64, size=int(n)).tolist() for n in generator.integers(1, 9, size=len(many))]
    for prompt, answer, result in zip(many, answers, score(model, many, answers, pad_id=0, batch_size=16), strict=True):
        n = len(answer)
        with torch.no_grad():
            members = model.member_log_probs(torch.tensor([prompt + answer]))[:, 0, -n - 1 : -1]
        combined = combine(members, WEIGHTS, rule)
        true = torch.tensor(answer)
        np.testing.assert_allclose(result.logprobs, combined.gather(-1, true[:, None])[:, 0], atol=1e-4)
        np.testing.assert_array_equal(result.correct, combined.argmax(-1) == true)
        np.testing.assert_array_equal(result.member_correct, members.argmax(-1) == true)
        expected = members.gather(-1, true.expand(3, n)[..., None])[..., 0]
        np.testing.assert_allclose(result.member_logprobs, expected, atol=1e-4)
        assert (result.logprobs.dtype, result.correct.dtype) == (np.float32, bool)


def test_greedy_answers_score_as_all_correct_with_the_same_log_probabilities(ensemble, many):
    generations = decode(ensemble, many, **GREEDY)
    for generation, result in zip(
        generations, score(ensemble, many, tokens(generations), pad_id=0, batch_size=16), strict=True
    ):
        assert result.correct.all()
        np.testing.assert_allclose(result.logprobs, generation.logprobs, atol=1e-4)
        chosen = np.array(generation.token_ids)
        np.testing.assert_array_equal(result.member_correct, chosen == generation.votes.T)


def test_scoring_splits_batches_that_would_not_fit(ensemble, many, monkeypatch):
    answers = [prompt[::-1] for prompt in many]
    expected = score(ensemble, many, answers, pad_id=0, batch_size=20)
    monkeypatch.setattr("ensemw2s.ensemble.score.MAX_SCORED_LOGITS", 20 * 64 * 4 * 3)
    seen = []
    forward = ensemble.member_log_probs
    monkeypatch.setattr(
        ensemble, "member_log_probs", lambda ids, **options: (seen.append(len(ids)), forward(ids, **options))[1]
    )
    for one, other in zip(expected, score(ensemble, many, answers, pad_id=0, batch_size=20), strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)
    assert max(seen) <= 3


def test_an_empty_answer_has_an_empty_score(ensemble, prompts):
    results = score(ensemble, prompts[:3], [[5], [], [6, 2]], pad_id=0, batch_size=4)
    assert [len(r.logprobs) for r in results] == [1, 0, 2]
    assert results[1].member_correct.shape == (3, 0)


def test_nothing_in_gives_nothing_out(ensemble):
    assert decode(ensemble, [], **GREEDY) == []
    assert score(ensemble, [], [], pad_id=0, batch_size=4) == []


def test_arrays_are_as_good_as_lists(ensemble, prompts):
    arrays = [np.array(prompt, np.int32) for prompt in prompts]
    for options in (GREEDY, SAMPLED):
        assert tokens(decode(ensemble, arrays, **options)) == tokens(decode(ensemble, prompts, **options))


def test_bad_prompts_are_named_by_their_index(ensemble, prompts):
    with pytest.raises(DataError, match="prompt 2 is empty"):
        decode(ensemble, [[5], [6], [], [7]], **GREEDY)
    with pytest.raises(DataError, match="prompt 1 is empty"):
        score(ensemble, [[5], []], [[5], [5]], pad_id=0, batch_size=4)
    with pytest.raises(DataError, match="prompt 1 has token 64, outside the vocabulary of 64"):
        decode(ensemble, [[5], [6, 64]], **GREEDY)
    with pytest.raises(DataError, match="answer 0 has token -1"):
        score(ensemble, [[5]], [[-1]], pad_id=0, batch_size=4)
    with pytest.raises(DataError, match="1 prompts and 2 answers"):
        score(ensemble, [[5]], [[5], [5]], pad_id=0, batch_size=4)


def test_prompts_that_do_not_fit_into_the_context_are_named_by_their_index(ensemble):
    fits, too_long = [5] * 56, [5] * 57
    assert len(decode(ensemble, [fits], **GREEDY)) == 1
    with pytest.raises(ModelError, match=r"prompt 1 has 57 tokens, which with 8 new tokens is more than .* 64"):
        decode(ensemble, [fits, too_long], **GREEDY)
    with pytest.raises(ModelError, match="prompt 0 has 57 tokens, which with 8 answer tokens"):
        score(ensemble, [too_long], [[6] * 8], pad_id=0, batch_size=4)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"distributions": 65}, "distributions is 65; expected 0 to 64"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": [1, 2]}, "one for each of 1 prompts"),
        ({"temperature": -0.1}, r"temperature is -0\.1"),
    ],
)
def test_options_out_of_range_are_refused(ensemble, option, message):
    with pytest.raises(ConfigError, match=message):
        decode(ensemble, [[5]], **{**GREEDY, **option})
