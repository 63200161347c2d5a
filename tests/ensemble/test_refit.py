import itertools

import numpy as np
import pytest

from ensemw2s.ensemble.refit import (
    LEAST_WEIGHT,
    TEMPERATURES,
    best_temperature,
    mixture_nll,
    mixture_weights,
)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def drawn(members: int, n: int, seed: int, classes: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Random distributions `[members, n, classes]` as logarithms, and uniform numbers `[n]` to draw tokens with."""
    rng = np.random.default_rng(seed)
    return log_softmax(rng.normal(0, 2, (members, n, classes))), rng.random(n)


def tokens_of(p: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    return np.minimum((p.cumsum(axis=-1) < uniform[:, None]).sum(axis=-1), p.shape[-1] - 1)


def of_tokens(log_p: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return log_p[:, np.arange(len(tokens)), tokens]


@pytest.mark.parametrize("members", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_no_point_of_a_grid_over_the_simplex_is_better_than_the_fit(members, seed) -> None:
    log_p, uniform = drawn(members, 200, seed)
    logprobs = of_tokens(log_p, tokens_of(np.exp(log_p[0]), uniform))
    steps = np.linspace(0, 1, 51)
    grid = [np.array([*rest, 1 - sum(rest)]) for rest in itertools.product(steps, repeat=members - 1) if sum(rest) <= 1]
    best = min(mixture_nll(logprobs, point).mean() for point in grid)
    fitted = mixture_weights(logprobs)
    assert mixture_nll(logprobs, fitted).mean() <= best + 1e-4
    assert fitted.sum() == pytest.approx(1)


def test_the_weights_of_a_known_mixture_are_found() -> None:
    true = np.array([0.6, 0.3, 0.1])
    log_p, uniform = drawn(3, 40_000, seed=5)
    tokens = tokens_of(np.einsum("m,mnk->nk", true, np.exp(log_p)), uniform)
    np.testing.assert_allclose(mixture_weights(of_tokens(log_p, tokens)), true, atol=0.02)


def test_the_fit_is_the_same_every_time_and_follows_the_members_order() -> None:
    log_p, uniform = drawn(3, 300, seed=2)
    logprobs = of_tokens(log_p, tokens_of(np.exp(log_p[1]), uniform))
    fitted = mixture_weights(logprobs)
    np.testing.assert_array_equal(fitted, mixture_weights(logprobs.copy()))
    np.testing.assert_allclose(fitted[::-1], mixture_weights(logprobs[::-1]), atol=1e-9)


def test_a_member_alone_has_the_whole_vote() -> None:
    assert mixture_weights(np.array([[-3.0, -np.inf]])).tolist() == [1.0]


def test_equal_members_keep_equal_weights() -> None:
    logprobs = np.tile(np.array([-0.5, -2.0, -7.0]), (4, 1))
    np.testing.assert_allclose(mixture_weights(logprobs), [0.25] * 4)


def test_a_member_that_is_worse_at_every_token_has_no_vote() -> None:
    logprobs = np.array([[-0.1, -0.2, -0.3], [-3.0, -4.0, -5.0]])
    fitted = mixture_weights(logprobs, gain=1e-12)
    assert fitted.tolist() == [1.0, 0.0]
    assert LEAST_WEIGHT > 0


def test_impossible_tokens_do_not_break_the_fit() -> None:
    never = -np.inf
    fitted = mixture_weights(np.array([[-0.1, never, never, -1.0], [-2.0, -0.5, never, -1.0]]))
    assert np.isfinite(fitted).all()
    assert (fitted > 0).all(), "each is needed for a token that the other finds impossible, or is better at"
    assert mixture_weights(np.array([[never, -1.0], [never, never]])).tolist() == [1.0, 0.0]
    assert mixture_weights(np.full((2, 3), never)).tolist() == [0.5, 0.5], "nothing is known of either"


def losses(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    scaled = log_softmax(logits / TEMPERATURES[:, None, None])
    return -scaled[:, np.arange(len(tokens)), tokens].mean(axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("sharpness", [0.4, 0.8, 1.0, 1.3, 3.0])
def test_the_temperature_of_logits_that_are_too_sharp_or_too_flat_is_found(sharpness) -> None:
    log_p, uniform = drawn(1, 40_000, seed=8)
    tokens = tokens_of(np.exp(log_p[0]), uniform)
    assert best_temperature(losses(log_p[0] * sharpness, tokens)) == pytest.approx(sharpness, rel=0.03)


def test_between_two_temperatures_that_were_tried_the_loss_is_still_at_its_least() -> None:
    log_p, uniform = drawn(1, 2_000, seed=9)
    logits, tokens = log_p[0] * 1.54, tokens_of(np.exp(log_p[0]), uniform)

    def loss(t: float) -> float:
        return -log_softmax(logits / t)[np.arange(len(tokens)), tokens].mean()

    found = best_temperature(losses(logits, tokens))
    assert loss(found) <= min(loss(found * factor) for factor in (0.98, 1.02))
    assert loss(found) <= losses(logits, tokens).min()


def test_a_temperature_stays_within_what_was_tried() -> None:
    assert TEMPERATURES[[0, 16, -1]].tolist() == pytest.approx([0.25, 1.0, 4.0])
    log_t = np.log(TEMPERATURES)
    assert best_temperature(log_t) == pytest.approx(0.25)
    assert best_temperature(-log_t) == pytest.approx(4.0)


def test_where_no_temperature_is_better_the_logits_stay_as_they_are() -> None:
    assert best_temperature(np.full(33, 2.0)) == 1.0
    assert best_temperature(np.full(33, np.inf)) == 1.0
    assert best_temperature((np.log(TEMPERATURES)) ** 2) == pytest.approx(1.0)
