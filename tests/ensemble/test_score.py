import numpy as np
import pytest
import torch

from ensemw2s.ensemble.combine import combine
from ensemw2s.ensemble.decoding import decode
from ensemw2s.ensemble.model import EnsembleForCausalLM
from ensemw2s.ensemble.score import score
from ensemw2s.errors import ConfigError, DataError, ModelError
from ensemw2s.models import head

WEIGHTS = [1.0, 2.0, 1.5]
RULES = ["probability", "log_probability", "vote"]
GREEDY = {"max_new_tokens": 8, "eos_ids": [2, 7, 19, 33, 60], "batch_size": 4}


@pytest.fixture(scope="module")
def ensemble(experts) -> EnsembleForCausalLM:
    return EnsembleForCausalLM(experts, WEIGHTS)


@pytest.mark.parametrize("vocabulary", [0, head.SMALL], ids=["answers' logits", "last columns"])
@pytest.mark.parametrize("rule", RULES)
def test_scores_are_those_of_each_answer_alone(experts, many, rule, vocabulary, monkeypatch):
    monkeypatch.setattr(head, "SMALL", vocabulary)
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
        generations, score(ensemble, many, [g.token_ids for g in generations], pad_id=0, batch_size=16), strict=True
    ):
        assert result.correct.all()
        np.testing.assert_allclose(result.logprobs, generation.logprobs, atol=1e-4)
        chosen = np.array(generation.token_ids)
        np.testing.assert_array_equal(result.member_correct, chosen == generation.votes.T)


def test_a_members_loss_at_a_temperature_is_that_of_a_member_that_has_it(experts, prompts):
    model = EnsembleForCausalLM(experts, WEIGHTS)
    answers, size = [prompt[::-1] for prompt in prompts], {"pad_id": 0, "batch_size": 4}
    scaled = score(model, prompts, answers, **size, temperatures=[0.5, 1.0, 3.0])
    for place, t in enumerate((0.5, 1.0, 3.0)):
        warm = EnsembleForCausalLM(experts, WEIGHTS, temperatures=[t, t, t])
        for one, other in zip(scaled, score(warm, prompts, answers, **size), strict=True):
            expected = -other.member_logprobs.sum(axis=1, dtype="float64")
            np.testing.assert_allclose(one.scaled_nll[place], expected, rtol=1e-4)
            assert other.scaled_nll.shape == (0, 3)


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


def test_a_plain_model_scores_as_an_ensemble_of_one(experts, prompts):
    answers = [g.token_ids for g in decode(experts[0], prompts, **GREEDY)]
    results = score(experts[0], prompts, answers, pad_id=0, batch_size=4)
    assert all(result.correct.all() for result in results)
    assert all(result.member_logprobs.shape == (1, len(result.logprobs)) for result in results)


def test_each_members_own_choice_comes_along(ensemble, experts, prompts):
    answers = [prompt[::-1] for prompt in prompts]
    for prompt, answer, result in zip(
        prompts, answers, score(ensemble, prompts, answers, pad_id=0, batch_size=4), strict=True
    ):
        for model, chosen in zip(experts, result.member_tokens, strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([prompt + answer])).logits[0, -len(answer) - 1 : -1]
            np.testing.assert_array_equal(chosen, logits.argmax(-1))


def test_scores_after_decoding_are_those_before_it(make_model, prompts):
    model = EnsembleForCausalLM([make_model(seed) for seed in (20, 21)], [1.0, 2.0])
    answers = [prompt[::-1] for prompt in prompts]
    before = score(model, prompts, answers, pad_id=0, batch_size=4)
    decode(model, prompts, **GREEDY)  # the engine stacks the members' weights
    for one, other in zip(before, score(model, prompts, answers, pad_id=0, batch_size=4), strict=True):
        np.testing.assert_array_equal(one.member_logprobs, other.member_logprobs)


def test_nothing_in_gives_nothing_out(ensemble):
    assert score(ensemble, [], [], pad_id=0, batch_size=4) == []


def test_bad_input_is_named_by_its_index(ensemble):
    with pytest.raises(DataError, match="prompt 1 is empty"):
        score(ensemble, [[5], []], [[5], [5]], pad_id=0, batch_size=4)
    with pytest.raises(DataError, match="answer 0 has token -1"):
        score(ensemble, [[5]], [[-1]], pad_id=0, batch_size=4)
    with pytest.raises(DataError, match="1 prompts and 2 answers"):
        score(ensemble, [[5]], [[5], [5]], pad_id=0, batch_size=4)
    with pytest.raises(ModelError, match="prompt 0 has 57 tokens, which with 8 answer tokens"):
        score(ensemble, [[5] * 57], [[6] * 8], pad_id=0, batch_size=4)
    with pytest.raises(ConfigError, match="batch_size is 0"):
        score(ensemble, [[5]], [[5]], pad_id=0, batch_size=0)
