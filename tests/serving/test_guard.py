"""What decides by a request's head alone, and reads bodies: here without a network."""

import asyncio

import pytest

from ensemw2s.serving import guard
from ensemw2s.serving.guard import LARGE_RATE, SMALL_BODY, Access, Guard, Pace


async def read(guarded: Guard, chunks: list[bytes]) -> None:
    """Sends a body in chunks to an app that reads all of it."""
    waiting = list(chunks)

    async def receive():
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def send(_):
        pass

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"transfer-encoding", b"chunked")]}
    await guarded(scope, receive, send)
    assert not waiting


async def reader(scope, receive, send) -> None:
    while (await receive()).get("more_body"):
        pass


@pytest.fixture
def slept(monkeypatch):
    """Seconds of every pause, which take no time here."""
    found: list[float] = []

    async def sleep(seconds: float) -> None:
        found.append(seconds)

    monkeypatch.setattr(guard.asyncio, "sleep", sleep)
    return found


def test_large_bodies_share_one_rate_and_small_ones_do_not_wait(slept):
    chunk = b"x" * SMALL_BODY
    guarded = Guard(reader, Access(), 2**24)
    guarded._pace = Pace(lambda: 0.0)  # a clock that stands still, whatever the machine does meanwhile

    async def all_of_them() -> None:
        for _ in range(4):
            await read(guarded, [chunk] * 4)
        assert len(slept) == 12  # what is beyond the first chunk of each
        assert slept == pytest.approx([(1 + number) * SMALL_BODY / LARGE_RATE for number in range(12)])
        await read(guarded, [chunk])
        assert len(slept) == 12

    asyncio.run(all_of_them())
