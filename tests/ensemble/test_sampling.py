import numpy as np
import pytest
import torch

from ensemw2s.ensemble.sampling import LIKELIEST, Sampling, _column, _kept, choose, draws
from ensemw2s.errors import ConfigError

PROBS = torch.tensor([0.1, 0.4, 0.05, 0.25, 0.2])


def frequencies(sampling: Sampling, probs: torch.Tensor = PROBS, count: int = 20_000) -> np.ndarray:
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count  # even, so that there is no noise
    tokens = choose(probs.log().expand(count, -1), sampling, uniform)
    return np.bincount(tokens.numpy(), minlength=len(probs)) / count


def test_temperature_zero_takes_the_likeliest_and_ties_go_to_the_lowest_id():
    log_probs = torch.tensor([[-2.0, -0.5, -0.5], [-0.1, -3.0, -9.0]])
    assert choose(log_probs, Sampling(), None).tolist() == [1, 0]


def test_sampling_draws_from_the_distribution():
    np.testing.assert_allclose(frequencies(Sampling(temperature=1.0)), PROBS.numpy(), atol=2e-4)


def test_temperature_sharpens_the_distribution():
    expected = (PROBS**2 / (PROBS**2).sum()).numpy()
    np.testing.assert_allclose(frequencies(Sampling(temperature=0.5)), expected, atol=2e-4)


def test_top_k_keeps_the_likeliest():
    expected = np.array([0, 0.4, 0, 0.25, 0.2]) / 0.85
    np.testing.assert_allclose(frequencies(Sampling(temperature=1.0, top_k=3)), expected, atol=2e-4)


def test_top_p_keeps_the_fewest_tokens_that_reach_it():
    expected = np.array([0, 0.4, 0, 0.25, 0]) / 0.65
    np.testing.assert_allclose(frequencies(Sampling(temperature=1.0, top_p=0.6)), expected, atol=2e-4)
    assert frequencies(Sampling(temperature=1.0, top_p=1e-9))[1] == 1


def test_top_p_counts_what_top_k_left():
    expected = np.array([0, 0.4, 0, 0.25, 0]) / 0.65  # of 0.47, 0.29 and 0.24, two reach 0.7
    np.testing.assert_allclose(frequencies(Sampling(temperature=1.0, top_k=3, top_p=0.7)), expected, atol=2e-4)


def test_impossible_tokens_are_never_drawn():
    probs = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0])
    extremes = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert set(choose(probs.log().expand(2, -1), Sampling(temperature=1.0), extremes).tolist()) == {1, 3}


def sorted_out(log_probs: torch.Tensor, one: Sampling) -> list[int]:
    """The tokens that the cut-offs leave, by sorting everything."""
    order = sorted(range(len(log_probs)), key=lambda i: (-float(log_probs[i]), i))
    probs = torch.softmax(log_probs / one.temperature, dim=-1).double()
    order = order[: one.top_k or None]
    whole, before, kept = float(probs[order].sum()), 0.0, []
    for token in order:
        if one.top_p < 1 and before >= one.top_p * whole:
            break
        kept.append(token)
        before += float(probs[token])
    return kept


@pytest.mark.parametrize("scale", [0.01, 1.0, 6.0])
def test_cut_offs_leave_what_sorting_the_vocabulary_leaves(scale):
    logits = torch.randn(8, 3 * LIKELIEST, generator=torch.Generator().manual_seed(0)) * scale
    log_probs = torch.log_softmax((logits * 50).round() / 50, dim=-1)  # with many ties
    each = [
        Sampling(0.7),
        Sampling(1.0, top_k=5),
        Sampling(1.0, top_k=2 * LIKELIEST),
        Sampling(0.5, top_p=0.3),
        Sampling(1.3, top_p=0.99),
        Sampling(1.0, top_k=40, top_p=0.9),
        Sampling(1.0, top_k=2 * LIKELIEST, top_p=0.97),
        Sampling(1.0, top_p=1e-9),
    ]
    found = _kept(
        log_probs, torch.softmax(log_probs / _column([o.temperature for o in each], logits).float(), -1).double(), each
    )
    for row, one in enumerate(each):
        assert found[row].nonzero().flatten().tolist() == sorted(sorted_out(log_probs[row], one))


def test_draws_depend_on_seed_and_prompt_alone():
    np.testing.assert_array_equal(draws(7, [1, 2], 4), draws(7, [1, 2], 4))
    np.testing.assert_array_equal(draws(7, [1, 2], 9)[:4], draws(7, [1, 2], 4))
    assert len({draws(seed, prompt, 1)[0] for seed, prompt in [(7, [1, 2]), (8, [1, 2]), (7, [2, 1]), (7, [1])]}) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, r"temperature is -1\.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, r"top_p is 0\.0"),
        ({"top_p": 1.5}, r"top_p is 1\.5"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Sampling(**options)
