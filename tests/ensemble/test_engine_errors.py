"""Errors in a step: they end the rows that caused them, and the others get what they would get alone."""

import pytest

from ensemw2s.ensemble import choices
from ensemw2s.ensemble.engine import Engine
from ensemw2s.ensemble.model import EnsembleForCausalLM
from ensemw2s.ensemble.requests import Request
from ensemw2s.ensemble.running import Running
from ensemw2s.ensemble.sampling import Sampling
from ensemw2s.ensemble.sharing import SharedEngine
from ensemw2s.ensemble.speculation import Speculation

POISON = 0.777
"""Temperature, number of tokens or string of the requests that fail."""


class Broken(Exception):
    pass


@pytest.fixture
def ensemble(experts) -> EnsembleForCausalLM:
    return EnsembleForCausalLM(experts[:2], [0.6, 0.4])


def fail_in_sampling(patch) -> Request:
    choose = choices.choose

    def broken(scores, each, uniform):
        if any(one.temperature == POISON for one in each):
            raise Broken
        return choose(scores, each, uniform)

    patch.setattr(choices, "choose", broken)
    return Request([3, 4], 9, sampling=Sampling(POISON))


def fail_where_so_many_are_wanted(patch, count: int) -> None:
    likeliest = choices._likeliest

    def broken(scores, counts):
        if count in counts:
            raise Broken
        return likeliest(scores, counts)

    patch.setattr(choices, "_likeliest", broken)


def fail_in_votes(patch) -> Request:
    fail_where_so_many_are_wanted(patch, 7)
    return Request([3, 4], 9, votes=7)


def fail_in_logprobs(patch) -> Request:
    fail_where_so_many_are_wanted(patch, 5)
    return Request([3, 4], 9, distributions=5)


def fail_in_weights(patch) -> Request:
    combine = choices.combine

    def broken(members, weights, rule):
        if weights[0] == 0.25:
            raise Broken
        return combine(members, weights, rule)

    patch.setattr(choices, "combine", broken)
    return Request([3, 4], 9, weights={"member-0": 1.0, "member-1": 3.0})


def fail_in_stop_strings(patch) -> Request:
    ended = Running.ended

    def broken(self, tokenizer):
        if self.request.max_new_tokens == 8:
            raise Broken
        return ended(self, tokenizer)

    patch.setattr(Running, "ended", broken)
    return Request([3, 4], 8)


WAYS = [fail_in_sampling, fail_in_votes, fail_in_logprobs, fail_in_weights, fail_in_stop_strings]
ORDINARY = [Request([5 + i, 6], 9, sampling=Sampling(0.9), seed=i, votes=2, distributions=3) for i in range(6)]


def run(engine: Engine, requests: list[Request]) -> tuple[dict, dict]:
    keys = {engine.submit(request): i for i, request in enumerate(requests)}
    done, failed = {}, {}
    while engine.busy:
        for update in engine.step():
            if update.generation is not None:
                done[keys[update.key]] = update.generation
            if update.error is not None:
                failed[keys[update.key]] = update.error
    return done, failed


@pytest.mark.parametrize("fail", WAYS)
@pytest.mark.parametrize("speculation", [None, Speculation("ngram", always=True)])
def test_an_error_ends_the_rows_that_caused_it_and_no_others(ensemble, monkeypatch, fail, speculation):
    wanted, _ = run(Engine(ensemble, slots=8), ORDINARY)
    poison = fail(monkeypatch)
    requests = [*ORDINARY[:3], poison, *ORDINARY[3:], poison]
    done, failed = run(Engine(ensemble, slots=8, speculation=speculation), requests)
    assert set(failed) == {3, 7}
    assert all(isinstance(error, Broken) for error in failed.values())
    others = [i for i in range(8) if i not in failed]
    for i, expected in zip(others, range(6), strict=True):
        assert done[i].token_ids == wanted[expected].token_ids
        assert done[i].top_tokens.tolist() == wanted[expected].top_tokens.tolist()


def test_a_draft_that_fails_is_done_without(ensemble, monkeypatch):
    engine = Engine(ensemble, slots=8, speculation=Speculation("member", always=True))
    wanted, _ = run(Engine(ensemble, slots=8), ORDINARY)

    def broken(rows):
        raise Broken

    monkeypatch.setattr(engine._draft, "propose", broken)
    done, failed = run(engine, ORDINARY)
    assert failed == {}
    assert {i: one.token_ids for i, one in done.items()} == {i: one.token_ids for i, one in wanted.items()}


@pytest.mark.skipif(not choices.DEVICE_ERRORS, reason="this torch does not tell errors of a device")
def test_an_error_of_the_device_is_nobody_s_own(ensemble, monkeypatch):
    def broken(*_):
        raise choices.DEVICE_ERRORS[0]("an illegal memory access")

    monkeypatch.setattr(choices, "choose", broken)
    with pytest.raises(choices.DEVICE_ERRORS, match="illegal"):
        run(Engine(ensemble, slots=8), ORDINARY)


def test_a_list_whose_request_fails_raises_it_and_leaves_the_engine_empty(ensemble, monkeypatch):
    poison = fail_in_sampling(monkeypatch)
    engine = Engine(ensemble, slots=8)
    with pytest.raises(Broken):
        list(engine.run([*ORDINARY, poison]))
    assert not engine.busy
    shared = SharedEngine(engine)
    with pytest.raises(Broken):
        shared.run([*ORDINARY, poison])
    generations, failed = shared.run(ORDINARY)
    assert (len(generations), failed) == (6, {})


def test_weights_whose_sum_is_no_number_are_shares_all_the_same(ensemble):
    huge = Request([3, 4], 9, weights={"member-0": 1e308, "member-1": 1e308}, votes=1)
    tiny = Request([3, 4], 9, weights={"member-0": 5e-324, "member-1": 1.0})
    done, failed = run(Engine(ensemble, slots=4), [huge, tiny, Request([3, 4], 9, weights={"member-1": 1.0})])
    assert failed == {}
    assert set(done[0].agreement.tolist()) <= {0.0, 0.5, 1.0}
    assert done[1].token_ids == done[2].token_ids
