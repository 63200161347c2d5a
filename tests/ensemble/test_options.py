"""Options are compared by the sum of their log-likelihood, per token and per byte, as lm-eval compares them."""

import numpy as np
import pytest
import torch

from ensemw2s.config import DataConfig, ReasoningGymSource
from ensemw2s.data.tokens import encode_text, tokenize_prompts
from ensemw2s.ensemble.model import EnsembleForCausalLM
from ensemw2s.ensemble.options import ScoredOptions, score_options
from ensemw2s.ensemble.voter import Loaded
from ensemw2s.models import tiny

DATA = DataConfig(source=ReasoningGymSource(dataset="number_sorting"), prompt_template="sort {prompt} =")
OPTIONS = ["1 2 3", "7", "3 1 2 2 2 2"]


@pytest.fixture(scope="module")
def pair() -> Loaded:
    tokenizer = tiny.train_tokenizer(["sort 0 1 2 3 4 5 6 7 8 9 up = down"] * 9, 64)
    made = [tiny.create_tiny("tiny-weak", tokenizer, seed).eval() for seed in (0, 1)]
    with torch.no_grad():
        for model in made:
            model.model.norm.weight.mul_(4.0)
    return Loaded(EnsembleForCausalLM(made, [0.75, 0.25], names=["first", "second"]), tokenizer)


@torch.no_grad()
def likelihood(model, loaded: Loaded, prompt: str, option: str, *, end: bool) -> float:
    """Log-likelihood of an option after a prompt, each prefix read anew, as lm-eval asks a model for it."""
    [read] = tokenize_prompts([prompt], loaded.tokenizer, DATA)
    [answer] = encode_text([option], loaded.tokenizer, before=" ")
    total = 0.0
    for token in [*answer, loaded.eos_id] if end else answer:
        total += float(torch.log_softmax(model(torch.tensor([read])).logits[0, -1].double(), -1)[token])
        read = [*read, token]
    return total


def test_the_measures_are_lm_evals_acc_and_acc_norm_and_those_of_the_whole_answer_and_per_token(pair):
    [found, none] = score_options(["3 1 2", "1"], [OPTIONS, None], pair, DATA, batch_size=2)
    assert none is None
    lls = np.array([likelihood(pair.model, pair, "3 1 2", option, end=False) for option in OPTIONS])
    ended = [likelihood(pair.model, pair, "3 1 2", option, end=True) for option in OPTIONS]
    tokens = [len(ids) for ids in encode_text(OPTIONS, pair.tokenizer, before=" ")]
    completion_len = np.array([float(len(option)) for option in OPTIONS])  # as lm_eval.api.task computes acc_norm
    for by, expected in (
        ("answer", ended),
        ("sum", lls),
        ("token", lls / tokens),
        ("byte", lls / completion_len),
    ):
        np.testing.assert_allclose(found.values(by), expected, atol=1e-4)
        assert found.best(by) == int(np.argmax(expected))


def test_each_member_judges_the_whole_answer_for_itself(pair):
    [found] = score_options(["3 1 2"], [OPTIONS], pair, DATA, batch_size=8)
    for member, network in enumerate(network for network, *_ in pair.model.parts()):
        expected = [likelihood(network, pair, "3 1 2", option, end=True) for option in OPTIONS]
        np.testing.assert_allclose(found.members[member], expected, atol=1e-4)


def scored(texts: list[str], *logprobs: list[float]) -> ScoredOptions:
    ids = [list(range(len(each))) for each in logprobs]
    return ScoredOptions(texts, ids, [np.array(each, np.float32) for each in logprobs], np.zeros((1, len(texts))))


def test_a_long_option_can_win_per_token_or_per_byte_only():
    found = scored(["ab", "ab cd ef"], [-1.5, -0.1], [-1.0, -1.0, -1.0, -0.1])
    assert [found.best(by) for by in ("answer", "sum", "token", "byte")] == [0, 0, 1, 1]


def test_the_end_token_tells_an_option_from_one_that_begins_with_it():
    found = scored(["cat", "cat flap"], [-1.0, -4.0], [-1.0, -0.5, -0.1])
    assert [found.best(by) for by in ("answer", "sum")] == [1, 0]


def test_bytes_and_not_characters_count():
    found = scored(["abcd", "éééé"], [-2.0, 0.0], [-2.8, 0.0])
    assert found.values("byte").tolist() == pytest.approx([-0.5, -0.35])
