"""Many clients, some of whom hang up, while replicas are killed: every request ends well, and nothing leaks."""

import asyncio
import json
import random
import socket
import threading
import time
from collections import Counter

import aiohttp
import psutil
import pytest
import requests

pytestmark = pytest.mark.ray

CLIENTS = 64
PROMPT = "sort these 3 1 2"


@pytest.fixture
def endpoint(folders, workplace):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = workplace.start(
        "serve", "--ensemble", folders / "ensemble", "--port", str(port), "--slots", "8", "--cpus", "2",
    )  # fmt: skip
    running.wait_for_text("Ctrl-C ends it")
    running.url = f"http://127.0.0.1:{port}"
    return running


class Clients:
    """Send one request after another until they are told to stop, and remember how each ended."""

    def __init__(self, url: str) -> None:
        self.url, self.ends, self.strange, self.answers = url, Counter(), [], {}
        self._until = 0.0

    def run(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds
        asyncio.run(self._all())

    async def _all(self) -> None:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(self.url, connector=connector) as session:
            await asyncio.gather(*(self._one(session, random.Random(number)) for number in range(CLIENTS)))

    async def _one(self, session: aiohttp.ClientSession, numbers: random.Random) -> None:
        while time.monotonic() < self._until:
            seed, length = numbers.randrange(20), numbers.choice([8, 40, 160])
            stream, hang_up = numbers.random() < 0.7, numbers.random() < 0.2
            body = {
                "prompt": PROMPT, "max_tokens": length, "temperature": 1.5, "seed": seed, "stream": stream,
                "stream_options": {"include_usage": True} if stream else None,
            }  # fmt: skip
            try:
                async with asyncio.timeout(60):
                    async with session.post("/v1/completions", json=body) as answer:
                        end = await self._read(answer, stream, hang_up and numbers.randrange(4), (seed, length))
            except Exception as error:
                end = "broken"
                self.strange.append(repr(error))
            self.ends[end] += 1
            if end in ("429", "503"):
                await asyncio.sleep(0.5)

    async def _read(self, answer: aiohttp.ClientResponse, stream: bool, leave_after, key) -> str:
        if answer.status != 200:
            body = await answer.json()
            assert body["error"]["message"]
            assert answer.status in (429, 503), body
            assert "Retry-After" in answer.headers
            return str(answer.status)
        if not stream:
            [choice] = (await answer.json())["choices"]
            return self._full(choice["text"], choice["finish_reason"], key)
        text, finish, count = "", None, 0
        async for line in answer.content:
            if line == b"data: [DONE]\n":
                return self._full(text, finish, key)
            if not line.strip():
                continue
            if leave_after is not False and count >= leave_after:
                return "left"
            chunk = json.loads(line.removeprefix(b"data: "))
            if "error" in chunk:
                return "told of an error"
            for choice in chunk["choices"]:
                text, finish = text + choice["text"], choice["finish_reason"] or finish
            count += 1
        raise AssertionError(f"a stream ended without [DONE] after {count} pieces")

    def _full(self, text: str, finish: str | None, key) -> str:
        assert finish in ("stop", "length"), finish
        assert self.answers.setdefault(key, text) == text  # the same seed, whatever is around it and who died
        return "full"


def figures(endpoint) -> dict[str, float]:
    """What the replica has to do, and memory of the fronts and the proxy."""
    lines = requests.get(f"{endpoint.url}/metrics", timeout=20).text.splitlines()
    found = {}
    for name in ("running_requests", "waiting_requests"):
        found[name] = sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"ensemw2s_{name}{{"))
    return found


def memory(endpoint) -> dict[str, float]:
    """MiB of the processes that live as long as the endpoint."""
    found = {}
    for name in ("ProxyActor", "ServeReplica:ensemw2s:front"):
        [process] = endpoint.descendants(name)
        found[name] = psutil.Process(process.pid).memory_info().rss / 2**20
    return found


def threads_and_files(endpoint) -> tuple[int, int]:
    processes = [endpoint.descendants(name)[0] for name in ("ProxyActor", "ServeReplica:ensemw2s:front")]
    return sum(p.num_threads() for p in processes), sum(p.num_fds() for p in processes)


def check(endpoint, seconds: float, kills: int) -> None:
    clients = Clients(endpoint.url)
    clients.run(3)  # what is set up at the first requests is no leak
    before, files = memory(endpoint), threads_and_files(endpoint)
    clients.ends.clear()
    working = threading.Thread(target=clients.run, args=(seconds,))
    working.start()
    for _ in range(kills):
        time.sleep(seconds / (kills + 1))
        [replica] = endpoint.descendants("ServeReplica:ensemw2s:ensemble")
        replica.kill()
    working.join()
    print(dict(clients.ends))
    assert clients.strange == []
    assert clients.ends["full"] > CLIENTS
    assert clients.ends["left"] > 5
    end = time.monotonic() + 20
    while any(figures(endpoint).values()) and time.monotonic() < end:
        time.sleep(0.2)
    assert set(figures(endpoint).values()) == {0}
    whole = {"prompt": PROMPT, "max_tokens": 40, "temperature": 1.5, "seed": 1}
    again = requests.post(f"{endpoint.url}/v1/completions", json=whole, timeout=60).json()["choices"][0]["text"]
    assert clients.answers.get((1, 40), again) == again
    end = time.monotonic() + 30
    while threads_and_files(endpoint)[1] > files[1] + 8 and time.monotonic() < end:
        time.sleep(0.5)  # connections of clients that went away are closed
    assert threads_and_files(endpoint)[1] <= files[1] + 8
    after = memory(endpoint)
    print(before, after, files, threads_and_files(endpoint))
    assert all(after[name] < before[name] + 60 for name in before)
    assert endpoint.interrupt().code == 0


def test_a_quarter_of_a_minute_with_a_kill(endpoint):
    check(endpoint, 15, kills=1)


@pytest.mark.long
def test_two_minutes_with_two_kills(endpoint):
    check(endpoint, 120, kills=2)
