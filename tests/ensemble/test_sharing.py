"""Threads that share an engine: each gets what it would get alone, and nobody waits for ever."""

import threading
import time

import pytest
import torch

from ensemw2s.ensemble.engine import Engine
from ensemw2s.ensemble.model import EnsembleForCausalLM
from ensemw2s.ensemble.requests import Request
from ensemw2s.ensemble.sharing import SharedEngine
from ensemw2s.errors import DataError, ModelError


@pytest.fixture
def shared(experts) -> SharedEngine:
    return SharedEngine(Engine(EnsembleForCausalLM(experts[:2], [0.6, 0.4]), slots=4))


def requests(seed: int, count: int, longest: int = 12) -> list[Request]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Request(torch.randint(3, 40, (2 + i % 5,), generator=generator).tolist(), 1 + i % longest) for i in range(count)
    ]


def tokens(result) -> list[list[int]]:
    generations, failed = result
    assert failed == {}
    return [generations[i].token_ids for i in sorted(generations)]


def together(*calls):
    """Results of calls in threads of their own; an error is a result."""
    found: list = [None] * len(calls)

    def call(i: int) -> None:
        try:
            found[i] = calls[i]()
        except BaseException as error:
            found[i] = error

    threads = [threading.Thread(target=call, args=(i,), daemon=True) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive(), "a thread waits for ever"
    return found


def test_each_thread_gets_what_it_would_get_alone(shared, experts):
    lists = [requests(seed, count) for seed, count in ((0, 9), (1, 1), (2, 17), (3, 0), (4, 6))]
    found = together(*[lambda mine=mine: shared.run(mine) for mine in lists])
    alone = Engine(EnsembleForCausalLM(experts[:2], [0.6, 0.4]), slots=1)
    for mine, result in zip(lists, found, strict=True):
        expected = dict(alone.run(mine))
        assert tokens(result) == [expected[i].token_ids for i in range(len(mine))]
    assert not shared.engine.busy


def test_slots_that_one_list_leaves_are_taken_by_the_next(shared):
    """The passes of two lists together are fewer than those of one after the other: no slot waits for a last answer."""
    long, many = [Request([5, 6], 60)], requests(0, 24)
    one = Engine(shared.engine.model, slots=4)
    for mine in (long, many):
        dict(one.run(mine))
    together(lambda: shared.run(long), lambda: shared.run(many))
    assert shared.engine.counters.tokens == one.counters.tokens
    assert shared.engine.counters.steps < 0.75 * one.counters.steps


def test_a_short_list_does_not_wait_for_a_long_one(shared, monkeypatch):
    """The long list is held in its first step until the short one has come, and in its tenth until that has ended."""
    begun, short_ended, real = threading.Event(), threading.Event(), shared.engine.step
    steps: list[bool] = []

    def step():
        begun.set()
        end = time.monotonic() + 20
        while not steps and not shared._arrived and time.monotonic() < end:
            time.sleep(0.001)
        steps.append(short_ended.wait(20) if len(steps) >= 10 else False)
        return real()

    def short() -> None:
        assert begun.wait(20)
        shared.run([Request([7, 8], 2)])
        short_ended.set()

    monkeypatch.setattr(shared.engine, "step", step)
    together(lambda: shared.run([Request([5, 6], 62)]), short)
    assert len(steps) > 20
    assert all(steps[10:])


def test_what_is_wrong_with_a_request_is_its_own(shared):
    good = requests(0, 3)
    mixed = [good[0], Request([], 4), good[1], Request([1] * 600, 4), good[2]]
    generations, failed = shared.run(mixed)
    assert sorted(generations) == [0, 2, 4]
    assert (type(failed[1]), type(failed[3])) == (DataError, ModelError)
    assert str(failed[1]).startswith("the prompt is empty")
    assert [generations[i].token_ids for i in (0, 2, 4)] == tokens(shared.run(good))


def test_a_failed_step_is_everybodys_and_the_engine_is_usable_after_it(shared, monkeypatch):
    lists = [requests(seed, 8) for seed in range(3)]
    barrier, real = threading.Barrier(3), shared.engine.step
    monkeypatch.setattr(shared.engine, "step", lambda: (_ for _ in ()).throw(RuntimeError("device lost")))

    def run(mine: list[Request]):
        barrier.wait(timeout=30)
        return shared.run(mine)

    found = together(*[lambda mine=mine: run(mine) for mine in lists])
    assert [str(error) for error in found] == ["device lost"] * 3
    assert not shared.engine.busy
    monkeypatch.setattr(shared.engine, "step", real)
    assert len(tokens(shared.run(lists[0]))) == 8
