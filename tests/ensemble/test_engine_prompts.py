"""Scores of prompts in the engine: those of teacher forcing, whatever else is under way."""

import numpy as np
import pytest

from ensemw2s.ensemble import engine as engine_module
from ensemw2s.ensemble.engine import Engine
from ensemw2s.ensemble.model import EnsembleForCausalLM
from ensemw2s.ensemble.requests import Request
from ensemw2s.ensemble.score import score

PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [3, 4], [20], [9, 8, 7, 6, 5], [30, 31, 32, 33, 34, 35, 36]]


@pytest.fixture(scope="module")
def ensemble(experts, make_other) -> EnsembleForCausalLM:
    """Members of several kinds: some share a pass, one is alone."""
    return EnsembleForCausalLM([*experts[:2], make_other("no positions", 0)], [0.5, 0.3, 0.2])


def run(engine: Engine, requests: list[Request]) -> list:
    keys = {engine.submit(request): i for i, request in enumerate(requests)}
    done, failed = {}, {}
    while engine.busy:
        for update in engine.step():
            if update.generation is not None:
                done[keys[update.key]] = update.generation
            if update.error is not None:
                failed[keys[update.key]] = update.error
    assert failed == {}
    return [done[i] for i in range(len(requests))]


@pytest.mark.parametrize("chunk", [4, 512])
@pytest.mark.parametrize("answer", [0, 3])
def test_scores_of_prompts_are_those_of_teacher_forcing(ensemble, monkeypatch, chunk, answer):
    monkeypatch.setattr(engine_module, "MAX_SCORED_LOGITS", 3000)  # parts of prompts, though they are short
    requests = [Request(prompt, answer, prompt_scores=3) for prompt in PROMPTS]
    others = [Request(prompt, 6) for prompt in PROMPTS[:3]]
    found = run(Engine(ensemble, slots=4, chunk=chunk), [*requests, *others])
    wanted = score(ensemble, [p[:1] for p in PROMPTS], [p[1:] for p in PROMPTS], pad_id=0, batch_size=1)
    for generation, expected in zip(found, wanted, strict=False):
        np.testing.assert_allclose(generation.prompt.logprobs, expected.logprobs, atol=1e-4)
        first = np.isclose(generation.prompt.top_logprobs[:, 0], generation.prompt.logprobs, atol=1e-5)
        np.testing.assert_array_equal(first, expected.correct)
        assert generation.prompt.top_tokens.shape == (len(expected.logprobs), 3)
        assert (generation.finish_reason, len(generation.token_ids)) == ("length", answer)
    plain = run(Engine(ensemble, slots=4), [Request(p, max(answer, 1)) for p in PROMPTS] + others)
    if answer:
        assert [one.token_ids for one in found] == [one.token_ids for one in plain]
    assert [one.token_ids for one in found[5:]] == [one.token_ids for one in plain[5:]]


def test_weights_of_a_request_score_its_prompt(ensemble, experts):
    alone = Request(PROMPTS[0], 0, prompt_scores=0, weights={"member-1": 1.0})
    [generation] = run(Engine(ensemble, slots=2), [alone])
    [own] = score(experts[1], [PROMPTS[0][:1]], [PROMPTS[0][1:]], pad_id=0, batch_size=1)
    np.testing.assert_allclose(generation.prompt.logprobs, own.logprobs, atol=1e-4)


def test_a_prompt_that_cannot_be_scored_ends_alone(ensemble, monkeypatch):
    whole = engine_module.score_prompt

    def broken(model, row, members):
        if row.request.prompt_scores == 5:
            raise ZeroDivisionError
        return whole(model, row, members)

    monkeypatch.setattr(engine_module, "score_prompt", broken)
    engine = Engine(ensemble, slots=3)
    wrong, right, other = (engine.submit(Request(PROMPTS[0], 2, prompt_scores=k)) for k in (5, 1, None))
    ends = {}
    while engine.busy:
        ends |= {u.key: u.error or u.generation for u in engine.step() if u.error or u.generation}
    assert isinstance(ends[wrong], ZeroDivisionError)
    assert ends[right].token_ids == ends[other].token_ids
