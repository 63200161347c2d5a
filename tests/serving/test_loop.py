"""Coroutines that share an engine: each gets what it would get alone, those that leave free their slots."""

import asyncio
import threading

import numpy as np
import pytest

from ensemw2s.ensemble.engine import Engine
from ensemw2s.ensemble.requests import Request
from ensemw2s.errors import DataError
from ensemw2s.serving.loop import EngineLoop

PROMPTS = [[3, 4, 5], [6, 7], [8], [9, 10, 11, 12], [13, 14]]


@pytest.fixture
def looped(ensemble):
    found = EngineLoop(Engine(ensemble, slots=2))
    yield found
    found.close()
    assert found.join(10)


def alone(ensemble, request: Request):
    [(_, generation)] = Engine(ensemble, slots=1).run([request])
    return generation


async def take(looped: EngineLoop, request: Request, **options):
    came = []
    await looped.run(request, came.append, **options)
    return came


async def idle(looped: EngineLoop) -> None:
    async with asyncio.timeout(10):
        while looped.open or looped.engine.busy:
            await asyncio.sleep(0.01)


def test_each_gets_what_it_would_get_alone(looped, ensemble):
    async def all_at_once():
        return await asyncio.gather(*(take(looped, Request(prompt, 12)) for prompt in PROMPTS))

    for prompt, items in zip(PROMPTS, asyncio.run(all_at_once()), strict=True):
        wanted = alone(ensemble, Request(prompt, 12)).token_ids
        assert [token for one in items for token in one.token_ids] == wanted
        assert items[-1].generation is not None
        assert items[-1].generation.token_ids == wanted


def test_details_come_with_the_tokens(looped, ensemble):
    request = Request(PROMPTS[0], 9, distributions=3, votes=2)
    items = asyncio.run(take(looped, request, details=True, interval=0.01))
    wanted = alone(ensemble, request)
    for name in ("logprobs", "agreement", "votes", "entropy", "top_tokens", "vote_tokens", "vote_logprobs"):
        got = np.concatenate([getattr(one.details, name) for one in items])
        np.testing.assert_allclose(got, getattr(wanted, name), rtol=1e-4, atol=1e-5)


def test_an_interval_gathers_tokens_and_the_end_comes_at_once(looped):
    many = asyncio.run(take(looped, Request(PROMPTS[0], 40)))
    few = asyncio.run(take(looped, Request(PROMPTS[0], 40), interval=30.0))
    assert len(few) <= 3 < len(many)


def test_a_consumer_that_leaves_frees_its_slot(looped, ensemble):
    async def leave():
        first = threading.Event()
        running = asyncio.create_task(looped.run(Request(PROMPTS[0], 2000), lambda _: first.set()))
        assert await asyncio.to_thread(first.wait, 10)
        waiting = asyncio.create_task(take(looped, Request(PROMPTS[1], 2000)))
        await asyncio.sleep(0)
        for task in (running, waiting):
            task.cancel()
        await idle(looped)
        return await take(looped, Request(PROMPTS[2], 5))

    items = asyncio.run(leave())
    assert items[-1].generation.token_ids == alone(ensemble, Request(PROMPTS[2], 5)).token_ids


def test_a_consumer_that_fails_ends_its_request_alone(looped):
    def fail(_):
        raise ZeroDivisionError("no room for a token")

    async def both():
        return await asyncio.gather(
            looped.run(Request(PROMPTS[1], 30), fail), take(looped, Request(PROMPTS[0], 5)), return_exceptions=True
        )

    wrong, right = asyncio.run(both())
    assert isinstance(wrong, ZeroDivisionError)
    assert right[-1].generation is not None
    assert (looped.open, looped.failure) == (0, None)


def test_what_is_wrong_with_a_request_touches_no_other(looped):
    async def both():
        return await asyncio.gather(
            take(looped, Request([], 5)), take(looped, Request(PROMPTS[0], 5)), return_exceptions=True
        )

    wrong, right = asyncio.run(both())
    assert isinstance(wrong, DataError)
    assert right[-1].generation is not None
    assert looped.failure is None


def test_a_step_that_fails_ends_all_with_the_reason_and_the_next_are_served(looped, monkeypatch):
    step = looped.engine.step

    def broken():
        monkeypatch.setattr(looped.engine, "step", step)
        raise MemoryError("no memory left")

    monkeypatch.setattr(looped.engine, "step", broken)
    with pytest.raises(RuntimeError, match="no memory left"):
        asyncio.run(take(looped, Request(PROMPTS[0], 5)))
    assert isinstance(looped.failure, MemoryError)
    assert asyncio.run(take(looped, Request(PROMPTS[0], 5)))[-1].generation is not None


def test_an_error_of_one_request_or_of_who_counts_ends_neither_the_thread_nor_another(ensemble, monkeypatch):
    engine = Engine(ensemble, slots=2)
    submit = engine.submit

    def broken(request, name="prompt"):
        if request.max_new_tokens == 7:
            raise OverflowError("a number that nobody thought of")
        return submit(request, name)

    def miscount(_):
        raise ZeroDivisionError("counted wrong")

    monkeypatch.setattr(engine, "submit", broken)
    looped = EngineLoop(engine, miscount)

    async def both():
        return await asyncio.gather(
            take(looped, Request(PROMPTS[1], 7)), take(looped, Request(PROMPTS[0], 5)), return_exceptions=True
        )

    wrong, right = asyncio.run(both())
    assert isinstance(wrong, OverflowError)
    assert right[-1].generation is not None
    assert looped.failure is None
    looped.close()
    assert looped.join(10)
