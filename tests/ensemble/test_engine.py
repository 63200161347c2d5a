import numpy as np
import pytest
import torch

from ensemw2s.ensemble.combine import agreement, combine
from ensemw2s.ensemble.decoding import decode, decode_with, list_engine
from ensemw2s.ensemble.engine import Engine
from ensemw2s.ensemble.members import load_members
from ensemw2s.ensemble.model import EnsembleForCausalLM
from ensemw2s.ensemble.requests import Generation, Request
from ensemw2s.errors import ConfigError, DataError, EnsemW2SError, ModelError
from ensemw2s.models import loading

WEIGHTS = [1.0, 2.0, 1.5]
RULES = ["probability", "log_probability", "vote"]
ENDS = [2, 7, 19, 33, 60]  # several end tokens, so that rows leave the batch at different steps
GREEDY = {"max_new_tokens": 8, "eos_ids": ENDS, "batch_size": 4}
SLOW = pytest.mark.slow
SAMPLED = {**GREEDY, "temperature": 1.0, "top_k": 20, "top_p": 0.95, "seed": 5}


@pytest.fixture(scope="module")
def ensemble(experts) -> EnsembleForCausalLM:
    return EnsembleForCausalLM(experts, WEIGHTS)


def tokens(generations: list[Generation]) -> list[list[int]]:
    return [generation.token_ids for generation in generations]


@pytest.mark.parametrize("rule", [RULES[0], *(pytest.param(rule, marks=SLOW) for rule in RULES[1:])])
def test_greedy_output_of_full_members_is_that_of_the_naive_reference(experts, many, naive_greedy, rule):
    model = EnsembleForCausalLM(experts, WEIGHTS, rule)
    expected = [naive_greedy(experts, WEIGHTS, prompt, 8, ENDS, rule) for prompt in many]
    assert tokens(decode(model, many, **GREEDY)) == expected
    assert len({len(answer) for answer in expected}) > 4  # the test means something: rows do leave at many steps


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES[:2])
def test_greedy_output_of_members_with_temperatures_is_that_of_the_naive_reference(
    experts, make_other, many, naive_greedy, rule
):
    models, weights, heat = [*experts, make_other("no positions", 0)], [*WEIGHTS, 1.0], [0.5, 3.0, 1.0, 1.7]
    model = EnsembleForCausalLM(models, weights, rule, temperatures=heat)
    expected = [naive_greedy(models, weights, prompt, 8, ENDS, rule, heat) for prompt in many]
    assert tokens(decode(model, many, **GREEDY)) == expected
    assert expected != [naive_greedy(models, weights, prompt, 8, ENDS, rule) for prompt in many]


@pytest.mark.slow
def test_greedy_output_of_adapters_is_that_of_the_naive_reference(adapter_folders, many, naive_greedy):
    model = EnsembleForCausalLM(load_members(adapter_folders), WEIGHTS)
    merged = [loading.load_trained(folder).merge_and_unload() for folder in adapter_folders]
    expected = [naive_greedy(merged, WEIGHTS, prompt, 8, ENDS) for prompt in many]
    assert tokens(decode(model, many, **GREEDY)) == expected
    assert expected != [naive_greedy(merged[:1], [1], prompt, 8, ENDS) for prompt in many]


KINDS = ["learned positions", "no positions", "sliding window", "convolutions"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*(pytest.param(kind, marks=SLOW) for kind in KINDS), "mixed"])
def test_greedy_output_of_other_architectures_is_that_of_the_naive_reference(
    kind, make_other, experts, prompts, naive_greedy
):
    kinds = KINDS if kind == "mixed" else [kind, kind]
    models = [make_other(one, seed) for seed, one in enumerate(kinds)]
    models = [*models, experts[0]] if kind == "mixed" else models
    weights = [1.0 + i for i in range(len(models))]
    expected = [naive_greedy(models, weights, prompt, 8, ENDS) for prompt in prompts]
    assert tokens(decode(EnsembleForCausalLM(models, weights), prompts, **GREEDY)) == expected


@SLOW
def test_greedy_output_is_that_of_generate(ensemble, many):
    for prompt, answer in zip(many, tokens(decode(ensemble, many, **GREEDY)), strict=True):
        output = ensemble.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False, eos_token_id=ENDS)
        assert output[0, len(prompt) :].tolist() == answer


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=SLOW), 7, pytest.param(20, marks=SLOW)])
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


@SLOW
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


def test_a_plain_model_decodes_as_an_ensemble_of_one(experts, prompts, naive_greedy):
    result = decode(experts[0], prompts, **GREEDY)
    assert tokens(result) == [naive_greedy(experts[:1], [1], prompt, 8, ENDS) for prompt in prompts]
    assert all((g.agreement == 1).all() and g.votes.shape[1] == 1 for g in result)


def test_nothing_in_gives_nothing_out(ensemble):
    assert decode(ensemble, [], **GREEDY) == []


def test_arrays_are_as_good_as_lists(ensemble, prompts):
    arrays = [np.array(prompt, np.int32) for prompt in prompts]
    for options in (GREEDY, SAMPLED):
        assert tokens(decode(ensemble, arrays, **options)) == tokens(decode(ensemble, prompts, **options))


def test_bad_prompts_are_named_by_their_index(ensemble):
    with pytest.raises(DataError, match="prompt 2 is empty"):
        decode(ensemble, [[5], [6], [], [7]], **GREEDY)
    with pytest.raises(DataError, match="prompt 1 has token 64, outside the vocabulary of 64"):
        decode(ensemble, [[5], [6, 64]], **GREEDY)


def test_prompts_that_do_not_fit_into_the_context_are_named_by_their_index(ensemble):
    fits, too_long = [5] * 56, [5] * 57
    assert len(decode(ensemble, [fits], **GREEDY)) == 1
    with pytest.raises(ModelError, match=r"prompt 1 has 57 tokens, which with 8 new tokens is more than .* 64"):
        decode(ensemble, [fits, too_long], **GREEDY)


def test_prompts_that_cannot_be_decoded_leave_the_others_alone(ensemble, prompts):
    failed: dict[int, EnsemW2SError] = {}
    mixed = [[], *prompts[:3], [5] * 57, *prompts[3:], [99]]
    assert tokens(decode(ensemble, mixed, **GREEDY, failed=failed)) == tokens(decode(ensemble, prompts, **GREEDY))
    assert {i: type(error) for i, error in failed.items()} == {0: DataError, 4: ModelError, 12: DataError}
    assert "prompt 0 is empty" in str(failed[0])
    assert "prompt 4 has 57 tokens" in str(failed[4])


def test_after_a_call_that_was_refused_decoding_goes_on_as_before(ensemble, prompts):
    expected = tokens(decode(ensemble, prompts, **GREEDY))
    with pytest.raises(DataError, match="prompt 1 is empty"):
        decode(ensemble, [prompts[0], []], **GREEDY)
    assert tokens(decode(ensemble, prompts, **GREEDY)) == expected


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


def test_weights_that_were_replaced_since_the_last_call_are_the_ones_decoded_with(make_model, prompts):
    model = EnsembleForCausalLM([make_model(0), make_model(1)], [1.0, 2.0])
    before = decode(model, prompts, **GREEDY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data = -parameter.data
    fresh = EnsembleForCausalLM([make_model(0), make_model(1)], [1.0, 2.0])
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.neg_()
    assert tokens(decode(model, prompts, **GREEDY)) == tokens(decode(fresh, prompts, **GREEDY)) != tokens(before)


def test_numbers_of_numpy_are_as_good_as_pythons(ensemble, prompts):
    options = {**SAMPLED, "seed": np.int64(5), "eos_ids": np.int64(2)}
    assert tokens(decode(ensemble, prompts, **options)) == tokens(
        decode(ensemble, prompts, **{**SAMPLED, "seed": 5, "eos_ids": 2})
    )


def test_text_in_the_place_of_tokens_is_named(ensemble):
    failed: dict = {}
    assert len(decode(ensemble, [["a"], [5]], **GREEDY, failed=failed)) == 1
    assert "token ids" in str(failed[0])


def test_after_its_memory_was_given_back_an_engine_decodes_as_before(ensemble, prompts):
    options = {"max_new_tokens": 6, "eos_ids": ()}
    engine = list_engine(ensemble, batch_size=3)
    before = decode_with(engine, prompts, **options)
    assert any(group.cache.bytes for group in engine.groups)
    engine.release()
    assert not any(group.cache.bytes for group in engine.groups)
    after = decode_with(engine, prompts, **options)
    assert [g.token_ids for g in after] == [g.token_ids for g in before]


def test_a_run_that_is_given_up_leaves_nothing_behind(ensemble):
    engine = Engine(ensemble, slots=2)
    with pytest.raises(DataError):
        list(engine.run([Request([5], 4), Request([], 4)]))
    assert not engine.busy
    for _ in engine.run([Request([5, i], 4) for i in range(3, 9)]):
        break
    assert not engine.busy
