"""Changes of a distribution before a token is chosen: each does what it says and nothing else."""

import pytest
import torch

from ensemw2s.ensemble.engine import Engine
from ensemw2s.ensemble.model import EnsembleForCausalLM
from ensemw2s.ensemble.requests import Request
from ensemw2s.ensemble.sampling import Sampling, choose
from ensemw2s.ensemble.shaping import Shaping, guided, shaped
from ensemw2s.ensemble.speculation import Speculation
from ensemw2s.errors import ConfigError, ModelError

SCORES = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05]).log()
PROMPT, ANSWER, ENDS = [0], [1, 3, 1], [4, 900]


def change(**options) -> list[float]:
    return [round(value, 3) for value in (shaped(SCORES, Shaping(**options), PROMPT, ANSWER, ENDS) - SCORES).tolist()]


def test_each_change_does_what_it_says():
    minus = -torch.inf
    assert change(frequency=0.5) == [0, -1, 0, -0.5, 0]
    assert change(presence=0.5) == [0, -0.5, 0, -0.5, 0]
    assert change(bias={2: 7.0, 0: -1.0}) == [-1, 0, 7, 0, 0]
    assert change(min_tokens=3) == [0, 0, 0, 0, 0]
    assert change(min_tokens=4) == [0, 0, 0, 0, minus]
    assert change(bad_words=((2,), (3, 1, 0), (1, 1, 3), (9, 1, 3, 1, 4), ())) == [minus, 0, minus, 0, 0]
    twice = [round(value, 3) for value in SCORES.tolist()]
    assert change(repetition=2.0) == [twice[0], twice[1], 0, twice[3], 0]


@pytest.mark.parametrize("wrong", [{"repetition": 0.0}, {"repetition": float("inf")}])
def test_a_change_that_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigError, match="repetition"):
        Shaping(**wrong)


def test_a_cut_by_the_share_of_the_likeliest():
    uniform = torch.linspace(0, 0.999, 400, dtype=torch.float64)
    found = choose(SCORES.expand(400, 5), Sampling(1.0, min_p=0.3), uniform)
    assert set(found.tolist()) == {0, 1, 2}
    assert set(choose(SCORES.expand(400, 5), Sampling(1.0, min_p=1.0), uniform).tolist()) == {0}


class Listed:
    """Allows the tokens of a list, one after the other."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens, self.taken = tokens, []

    def allowed(self) -> torch.Tensor:
        mask = torch.zeros(64, dtype=torch.bool)
        mask[self.tokens[len(self.taken)]] = True
        return mask

    def take(self, token: int) -> None:
        self.taken.append(token)


def test_a_guide_that_allows_nothing_is_an_error():
    class Nothing(Listed):
        def allowed(self) -> torch.Tensor:
            return torch.zeros(3, dtype=torch.bool)

    with pytest.raises(ModelError, match="no token may come next"):
        guided(SCORES, Nothing([]))


@pytest.mark.parametrize("speculation", [None, Speculation("member", always=True)])
def test_guides_and_changes_hold_for_their_request_alone_with_drafts_and_without(experts, speculation):
    ensemble = EnsembleForCausalLM(experts[:2], [0.6, 0.4])
    plain = Request([3, 4, 5], 8, sampling=Sampling(1.0), seed=4, distributions=2)
    listed, odd = Listed([9, 8, 7, 6, 9, 8, 7, 6]), dict.fromkeys(range(0, 64, 2), -100.0)
    requests = [
        plain,
        Request([3, 4, 5], 8, sampling=Sampling(1.0), guide=listed, distributions=2),
        Request([3, 4, 5], 8, shaping=Shaping(bias=odd)),
        plain,
    ]
    found = dict(Engine(ensemble, slots=4, speculation=speculation).run(requests))
    [(_, alone)] = Engine(ensemble, slots=1).run([plain])
    assert found[0].token_ids == found[3].token_ids == alone.token_ids
    assert found[1].token_ids == listed.taken == listed.tokens
    assert all(token % 2 for token in found[2].token_ids)
    assert (found[1].top_logprobs < 0).all()  # the distribution itself, before the guide
    with pytest.raises(ConfigError, match="no token 64"):
        Engine(ensemble, slots=1).submit(Request([3], 2, shaping=Shaping(bias={64: 1.0})))
