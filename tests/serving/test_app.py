"""The endpoint on Ray Serve: replicas that die, folders that change, many clients of whom some hang up, and an end that
waits for what is under way. One endpoint for all, which the last test ends.
"""

import asyncio
import json
import random
import shutil
import threading
import time
from collections import Counter

import aiohttp
import openai
import psutil
import pytest
import requests
import yaml

from .poison import BODIES, poison

pytestmark = pytest.mark.ray

CLIENTS = 64
QUEUE = 52
"""Requests that wait for a replica, which has 16: room for all clients while there is one, and not when it is gone."""

PROMPT = "sort these 3 1 2"
LONG = {"model": "ensemble", "prompt": PROMPT, "max_tokens": 1000, "temperature": 1.9, "seed": 3}


@pytest.fixture(scope="module")
def endpoint(folders, module_workplace, free_port):
    copy = module_workplace.folder / "models"
    shutil.copytree(folders, copy)
    file, port = module_workplace.folder / "serve.yaml", free_port()
    models = [{"name": name, "path": str(copy / name), "slots": 8} for name in ("ensemble", "student")]
    file.write_text(yaml.safe_dump({"models": models, "limits": {"queue": QUEUE}}))
    running = module_workplace.start("serve", "--settings", file, "--port", str(port), "--watch", "1", "--cpus", "3")
    running.wait_for_text("Ctrl-C ends it")
    running.url, running.models = f"http://127.0.0.1:{port}", copy
    return running


@pytest.fixture
def client(endpoint):
    return openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key="none", max_retries=0)


def texts(stream) -> list[str]:
    return [chunk.choices[0].text for chunk in stream]


def metric(endpoint, name: str, **labels: str) -> float:
    lines = requests.get(f"{endpoint.url}/metrics", timeout=20).text.splitlines()
    found = [one for one in lines if one.startswith(name + "{") and all(f'{k}="{v}"' in one for k, v in labels.items())]
    assert found, f"no {name} in the metrics"
    return sum(float(line.rsplit(" ", 1)[1]) for line in found)


def nothing_is_under_way(endpoint) -> bool:
    names, end = ("ensemw2s_running_requests", "ensemw2s_waiting_requests"), time.monotonic() + 20
    while (busy := sum(metric(endpoint, name) for name in names)) and time.monotonic() < end:
        time.sleep(0.2)
    return busy == 0


def replicas(endpoint):
    return endpoint.descendants("ServeReplica:ensemw2s:ensemble")


def test_both_models_answer_and_a_stream_is_the_whole_in_pieces(endpoint, client):
    assert [card.id for card in client.models.list().data] == ["ensemble", "student"]
    assert requests.get(f"{endpoint.url}/readyz", timeout=20).text == "ready"
    whole = client.completions.create(**LONG)
    pieces = texts(client.completions.create(**LONG, stream=True))
    assert "".join(pieces) == whole.choices[0].text
    other = client.completions.create(**{**LONG, "model": "student"})
    assert other.choices[0].text != whole.choices[0].text
    assert metric(endpoint, "ensemw2s_completion_tokens_total", model="ensemble") == 2 * whole.usage.completion_tokens
    assert metric(endpoint, "ensemw2s_completion_tokens_total", model="student") == other.usage.completion_tokens
    assert metric(endpoint, "ensemw2s_time_to_first_token_seconds_count") >= 3


def test_clients_that_hang_up_free_their_slots(endpoint):
    for streamed in (True, False):
        for _ in range(6):
            try:
                timeout = 20 if streamed else 0.05
                body = {**LONG, "stream": streamed}
                with requests.post(f"{endpoint.url}/v1/completions", json=body, stream=True, timeout=timeout) as answer:
                    next(answer.iter_lines())
            except requests.RequestException:
                pass
    assert nothing_is_under_way(endpoint)


def test_an_answer_goes_on_when_its_replica_dies(endpoint, client, module_workplace):
    wanted = "".join(texts(client.completions.create(**LONG, stream=True)))
    [replica] = replicas(endpoint)
    module_workplace.faults.plan("serving/piece@2=die")
    assert "".join(texts(client.completions.create(**LONG, stream=True))) == wanted
    assert module_workplace.faults.process("serving/piece", 2) == replica.pid
    module_workplace.faults.plan("")


def test_a_changed_folder_is_served_and_no_request_is_lost(endpoint, client, folders):
    before = client.completions.create(**LONG).choices[0].text
    failed, answers, stop = [], [], threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            try:
                answers.append(client.completions.create(**LONG).choices[0].text)
            except openai.OpenAIError as error:
                failed.append(str(error))

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        file = endpoint.models / "ensemble" / "ensemble.json"
        tree = json.loads(file.read_text())
        tree["members"][0]["weight"], tree["members"][1]["weight"] = 0.001, 5.0
        file.write_text(json.dumps(tree))
        endpoint.wait_for_text("ensemble is up to date")
        after = client.completions.create(**LONG).choices[0].text
    finally:
        stop.set()
        asking.join()
    assert failed == []
    assert answers[0] == before  # and all that began before the change were answered
    assert after != before


class Clients:
    """Send one request after another until they are told to stop, and remember how each ended."""

    def __init__(self, url: str, count: int = CLIENTS) -> None:
        self.count = count
        self.url, self.ends, self.strange, self.answers = url, Counter(), [], {}
        self._until = 0.0

    def run(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds
        asyncio.run(self._all())

    async def _all(self) -> None:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(self.url, connector=connector) as session:
            await asyncio.gather(*(self._one(session, random.Random(number)) for number in range(self.count)))

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


def front(endpoint) -> psutil.Process:
    """What lives as long as the endpoint."""
    [process] = endpoint.descendants("ServeReplica:ensemw2s:front")
    return process


def check_load(endpoint, seconds: float, kills: int) -> None:
    clients = Clients(endpoint.url)
    clients.run(3)  # what is set up at the first requests is no leak
    memory, files = front(endpoint).memory_info().rss, front(endpoint).num_fds()
    clients.ends.clear()
    working = threading.Thread(target=clients.run, args=(seconds,))
    working.start()
    for _ in range(kills):
        time.sleep(seconds / (kills + 1))
        [replica] = replicas(endpoint)
        replica.kill()
    working.join()
    print(dict(clients.ends))
    assert clients.strange == []
    assert clients.ends["full"] > CLIENTS
    assert clients.ends["left"] > 5
    assert clients.ends["429"] > 0
    assert nothing_is_under_way(endpoint)
    (seed, length), known = next(iter(clients.answers.items()))
    whole = {"prompt": PROMPT, "max_tokens": length, "temperature": 1.5, "seed": seed}
    again = requests.post(f"{endpoint.url}/v1/completions", json=whole, timeout=60).json()["choices"][0]["text"]
    assert again == known
    end = time.monotonic() + 30
    while front(endpoint).num_fds() > files + 8 and time.monotonic() < end:
        time.sleep(0.5)  # connections of clients that went away are closed
    grown = (front(endpoint).memory_info().rss - memory) / 2**20
    print(f"the front: {grown:+.0f} MiB, {front(endpoint).num_fds() - files:+d} files")
    assert front(endpoint).num_fds() <= files + 8
    assert grown < 60


def test_what_others_send_is_noticed_by_none_of_32_clients(endpoint):
    clients = Clients(endpoint.url, 32)
    working = threading.Thread(target=clients.run, args=(6,))
    working.start()
    ends = poison(endpoint.url)
    working.join()
    assert not [end for end in ends if end.startswith("5")], ends
    assert ends["400"] > len(BODIES) / 2
    assert clients.strange == []
    assert clients.ends["full"] > 0
    assert clients.ends.keys() <= {"full", "left"}, "an ordinary request was refused, or broke"
    assert nothing_is_under_way(endpoint)


@pytest.mark.parametrize(
    ("seconds", "kills"), [(15, 1), pytest.param(120, 2, marks=pytest.mark.long)], ids=["short", "long"]
)
def test_many_clients_and_replicas_that_are_killed(endpoint, seconds, kills):
    check_load(endpoint, seconds, kills)


def test_the_end_waits_for_what_is_under_way_and_lets_nobody_in(endpoint, client, module_workplace):
    wanted = "".join(texts(client.completions.create(**LONG, stream=True)))
    gate = module_workplace.faults.gate("nobody-is-let-in")
    module_workplace.faults.plan(f"serving/piece@2=wait:{gate}")  # the answer is under way until then
    stream = client.completions.create(**LONG, stream=True)
    found = [next(iter(stream)).choices[0].text]
    ended: list = []
    stopping = threading.Thread(target=lambda: ended.append(endpoint.interrupt()))
    stopping.start()
    endpoint.wait_for("it is not ready", lambda: not requests.get(f"{endpoint.url}/readyz", timeout=20).ok)
    other = {"prompt": PROMPT, "max_tokens": 1}
    answer = requests.post(f"{endpoint.url}/v1/completions", json=other, timeout=20)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
    assert int(answer.headers["Retry-After"]) > 0
    gate.touch()
    found += texts(stream)
    stopping.join()
    assert "".join(found) == wanted
    assert ended[0].code == 0
    assert "SIGTERM" not in ended[0].output
    assert "graceful_shutdown" not in ended[0].output
    logs = [file.read_text(errors="replace") for file in module_workplace.ray.glob("ray/session_2*/logs/**/*.*")]
    assert len(logs) > 5
    assert not any(PROMPT in log for log in logs), "prompts are logged by nobody who was not asked to"
    assert ended[0].output.splitlines()[-1] == "stopping: requests under way are answered to their end"
