"""What HTTP, Ray Serve and streams cost beside the bare engine, and how long requests wait for their tokens.

    python benchmarks/serve.py --base DIR                       # a causal LM in a folder, with LoRA members
    python benchmarks/serve.py                                  # random members of the tiny family

An `ensemw2s serve` with one replica, and clients that each send one streamed request after another. The bare engine
decodes the same requests, as many at a time, in a process of its own that has as many threads. Both are measured in
turns; JSON goes to standard output. `cpu_ms_a_request` says which processes the time went to.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import requests
import torch
import typer
from decode import TEXT, machine, save_random_ensemble, write

from ensemw2s.ensemble.engine import Engine
from ensemw2s.ensemble.requests import Request
from ensemw2s.ensemble.voter import Voter, load_voters

MODEL = "ensemble"


@contextmanager
def endpoint(
    ensemble: Path, slots: int, threads: int, limit: int, interval: float = 0.05, code: Path | None = None
) -> Iterator[str]:
    """Address of an `ensemw2s serve` that is up, of the installed package or of that in the folder `code`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "models": [{"name": MODEL, "path": str(ensemble), "slots": slots, "cpus": threads}],
        "limits": {"max_tokens": limit},
        "stream_interval": interval,
    }
    file = ensemble.parent / "serve.json"  # JSON is YAML
    file.write_text(json.dumps(settings), encoding="utf-8")
    program = Path(sys.executable).with_name("ensemw2s")
    command = [program, "serve", "--settings", file, "--port", port, "--cpus", threads]
    paths = {"PYTHONPATH": str(code)} if code else {}
    process = subprocess.Popen([str(part) for part in command], stdout=sys.stderr, env={**os.environ, **paths})
    try:
        url = f"http://127.0.0.1:{port}"
        end = time.time() + 480
        while not _is_ready(url):
            if process.poll() is not None or time.time() > end:
                raise RuntimeError("ensemw2s serve did not come up")
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait()


def _is_ready(url: str) -> bool:
    try:
        return requests.get(f"{url}/readyz", timeout=5).ok
    except requests.RequestException:
        return False


class Client(asyncio.Protocol):
    """One connection, one streamed request after another, as cheap as can be: it takes cores from what is measured."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._came, self._arrivals = bytearray(), list[float]()
        self._ended: asyncio.Future[None] | None = None

    @classmethod
    async def connect(cls, url: str) -> Client:
        """A connection to the endpoint."""
        host, port = url.removeprefix("http://").split(":")
        _, client = await asyncio.get_running_loop().create_connection(cls, host, int(port))
        return client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self._came += data
        pieces = self._came.count(b'"index":')
        self._arrivals += [now] * (pieces - len(self._arrivals))
        if self._came.endswith(b"0\r\n\r\n") and self._ended is not None:
            self._ended.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_exception(RuntimeError(f"the connection was lost after {bytes(self._came)!r}"))

    async def request(self, tokens: int, number: int) -> dict[str, Any]:
        """Times of one streamed answer: when its request went, and when which pieces came."""
        body = json.dumps(
            {
                "model": MODEL, "prompt": prompt_of(number), "max_tokens": tokens, "temperature": 0, "stream": True,
                "stream_options": {"include_usage": True},
            }
        )  # fmt: skip
        self._came, self._arrivals, self._ended = bytearray(), [], self._loop.create_future()
        assert self._transport is not None
        sent = time.perf_counter()
        self._transport.write(
            f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        await self._ended
        found = re.search(rb'"completion_tokens":(\d+)', self._came)
        if found is None or b"data: [DONE]" not in self._came:
            raise RuntimeError(f"no full answer: {bytes(self._came)!r}")
        return {"sent": sent, "arrivals": self._arrivals, "tokens": int(found[1])}

    def close(self) -> None:
        """Ends the connection."""
        assert self._transport is not None
        self._transport.close()


def prompt_of(number: int) -> str:
    """Prompts that differ, of about one length."""
    return f"{TEXT} {number % 10}"


def lengths_of(count: int, tokens: int) -> list[int]:
    """Lengths of answers, half as long to one and a half times; the same every time."""
    return [int(length) for length in np.random.default_rng(0).integers(tokens // 2, tokens + tokens // 2 + 1, count)]


async def load(url: str, streams: int, lengths: list[int]) -> list[dict[str, Any]]:
    """So many clients at a time, which take the next request from one list."""
    waiting = iter(enumerate(lengths))
    clients = [await Client.connect(url) for _ in range(streams)]

    async def one(client: Client) -> list[dict[str, Any]]:
        return [await client.request(tokens, number) for number, tokens in waiting]

    rows = [row for rows in await asyncio.gather(*map(one, clients)) for row in rows]
    for client in clients:
        client.close()
    return rows


def rate(rows: list[dict[str, Any]]) -> float:
    """Tokens a second, from the first request to the last token."""
    end = max(row["arrivals"][-1] for row in rows)
    return float(sum(row["tokens"] for row in rows) / (end - min(row["sent"] for row in rows)))


def percentiles(values: list[float]) -> dict[str, float]:
    """p50, p95 and p99 of seconds, in milliseconds."""
    return {f"p{p}": round(1000 * float(np.percentile(values, p)), 2) for p in (50, 95, 99)}


PROCESSES = {"ServeReplica:ensemw2s:ensemble": "replica", "ServeReplica:ensemw2s:front": "front"}


def cpu_seconds() -> dict[str, float]:
    """CPU time so far: the clients (this process), the replica, the front, and all else that the endpoint is."""
    found = {"clients": time.process_time(), "replica": 0.0, "front": 0.0, "rest": 0.0}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            title = " ".join(process.cmdline())
            if "--bare" not in title:
                name = next((name for part, name in PROCESSES.items() if part in title), "rest")
                times = process.cpu_times()
                found[name] += times.user + times.system
    return found


class Bare:
    """The engine in a process of its own, so that it shares nothing with clients; speaks JSON lines."""

    def __init__(self, ensemble: Path, slots: int, threads: int) -> None:
        command = [sys.executable, __file__, "--bare", str(ensemble), "--slots", str(slots)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def rate(self, streams: int, lengths: list[int]) -> tuple[float, float]:
        """Tokens a second, and CPU seconds."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps([streams, lengths]) + "\n")
        self.process.stdin.flush()
        tokens_per_second, seconds = json.loads(self.process.stdout.readline())
        return tokens_per_second, seconds

    def close(self) -> None:
        """Ends it."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def be_bare(ensemble: Path, slots: int) -> None:
    """What `Bare` starts: each line asks for a measurement, each answer is a rate."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    [loaded] = load_voters([Voter(name=MODEL, ensemble=str(ensemble))])
    engine = Engine(loaded.model, slots=slots, tokenizer=loaded.tokenizer)
    prompts = [list(loaded.tokenizer(prompt_of(number))["input_ids"]) for number in range(10)]
    for line in sys.stdin:
        streams, lengths = json.loads(line)
        waiting = iter(enumerate(lengths))
        began, cpu, count = time.perf_counter(), time.process_time(), 0

        def next_one(waiting: Iterator[tuple[int, int]] = waiting) -> None:
            for number, tokens in waiting:
                engine.submit(Request(prompts[number % 10], tokens, (loaded.eos_id,)))
                return

        for _ in range(streams):
            next_one()
        while engine.busy:
            for update in engine.step():
                count += len(update.token_ids)
                if update.generation is not None:
                    next_one()
        print(json.dumps([count / (time.perf_counter() - began), time.process_time() - cpu]), flush=True)


async def beside_a_long_one(url: str, short: int, long: int, count: int) -> dict[str, Any]:
    """Seconds of short requests, alone and while a long one runs."""
    client, other = await Client.connect(url), await Client.connect(url)

    async def seconds(number: int) -> float:
        row = await client.request(short, number)
        return float(row["arrivals"][-1] - row["sent"])

    alone = [await seconds(number) for number in range(count)]
    running = asyncio.create_task(other.request(long, 0))
    beside: list[float] = []
    while not running.done() and len(beside) < count:
        beside.append(await seconds(len(beside)))
    finished = running.done()
    await running
    client.close()
    other.close()
    return {
        "short_tokens": short,
        "long_tokens": long,
        "alone_ms": percentiles(alone),
        "beside_ms": percentiles(beside),
        "requests_beside": len(beside),
        "long_one_ran_all_the_while": not finished,
    }


LARGE = {"refused_by_bytes": 1_000_000, "refused_by_tokens": 120_000}
"""Characters of prompts that the endpoint refuses: the first before they are tokenized, the second after."""


async def beside_large_ones(url: str, short: int, count: int, senders: int = 4) -> dict[str, Any]:
    """Seconds of short requests, alone and while others send prompts that are refused, one after another."""
    client = await Client.connect(url)
    host, port = url.removeprefix("http://").split(":")

    async def seconds(number: int) -> float:
        row = await client.request(short, number)
        return float(row["arrivals"][-1] - row["sent"])

    async def send(message: bytes, sent: list[bytes]) -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            while True:
                writer.write(message)
                await writer.drain()
                head = await reader.readuntil(b"\r\n\r\n")
                found = re.search(rb"content-length: (\d+)", head.lower())
                assert found is not None
                await reader.readexactly(int(found[1]))
                sent.append(head.split(maxsplit=2)[1])
        finally:
            writer.close()

    told: dict[str, Any] = {"senders": senders, "alone_ms": percentiles([await seconds(n) for n in range(count)])}
    for name, size in LARGE.items():
        body = json.dumps({"model": MODEL, "prompt": "1 " * (size // 2), "max_tokens": 1})
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        message = f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()
        sent: list[bytes] = []
        others = [asyncio.create_task(send(message, sent)) for _ in range(senders)]
        beside = [await seconds(number) for number in range(count)]
        for other in others:
            other.cancel()
        ends = await asyncio.gather(*others, return_exceptions=True)
        failed = [end for end in ends if not isinstance(end, asyncio.CancelledError)]
        if failed or set(sent) != {b"400"}:
            raise RuntimeError(f"large prompts were not refused one after another: {failed or set(sent)}")
        told[name] = {"characters": size, "refused": len(sent), "beside_ms": percentiles(beside)}
    client.close()
    return told


def main(
    base: Annotated[Path | None, typer.Option(help="Folder of a causal LM; none: the tiny family.")] = None,
    members: Annotated[int, typer.Option(help="Members.")] = 4,
    streams: Annotated[str, typer.Option(help="Streams at a time.")] = "1,4,16,64",
    slots: Annotated[int, typer.Option(help="Slots of the engine.")] = 64,
    threads: Annotated[int, typer.Option(help="Threads of the replica, and of the bare engine.")] = 1,
    new_tokens: Annotated[int, typer.Option(help="Length of an answer.")] = 64,
    interval: Annotated[float, typer.Option(help="Seconds between two pieces of a stream.")] = 0.05,
    rounds: Annotated[int, typer.Option(help="Requests of a client, one after another.")] = 4,
    turns: Annotated[int, typer.Option(help="Measured turns.")] = 3,
    long_tokens: Annotated[int, typer.Option(help="Length of the long answer.")] = 128,
    short_count: Annotated[int, typer.Option(help="Short requests beside it.")] = 20,
    bare: Annotated[Path | None, typer.Option(hidden=True)] = None,
    output: Annotated[Path | None, typer.Option(help="File for the JSON; none: standard output.")] = None,
) -> None:
    """Prints JSON."""
    if bare is not None:
        be_bare(bare, slots)
        return
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    with tempfile.TemporaryDirectory() as folder:
        ensemble = save_random_ensemble(Path(folder), base, members)
        engine = Bare(ensemble, slots, threads)
        rows = []
        with endpoint(ensemble, slots, threads, max(2 * new_tokens, long_tokens), interval) as url:
            for number in map(int, streams.split(",")):
                rows.append(compare(engine, url, number, lengths_of(max(4, number) * rounds, new_tokens), turns))
            engine.close()
            mixed = asyncio.run(beside_a_long_one(url, 8, long_tokens, short_count))
            large = asyncio.run(beside_large_ones(url, 8, 10 * short_count))
    result = {
        "machine": machine(threads),
        "base": base.name if base else "tiny family",
        "kind": "lora" if base else "full",
        "members": members,
        "slots": slots,
        "new_tokens": new_tokens,
        "stream_interval": interval,
        "turns": turns,
        "rows": rows,
        "beside_a_long_request": mixed,
        "beside_large_prompts": large,
    }
    write(result, output)


def compare(engine: Bare, url: str, streams: int, lengths: list[int], turns: int) -> dict[str, Any]:
    """One line of the table, after a turn that is not measured."""
    rates: dict[str, list[float]] = {"engine": [], "served": []}
    answers: list[dict[str, Any]] = []
    cpu = Counter[str]()
    for turn in range(turns + 1):
        bare, engine_seconds = engine.rate(streams, lengths)
        before = cpu_seconds()
        found = asyncio.run(load(url, streams, lengths))
        if turn:
            rates["engine"].append(bare)
            rates["served"].append(rate(found))
            answers += found
            cpu["bare engine"] += engine_seconds
            cpu.update({name: seconds - before[name] for name, seconds in cpu_seconds().items()})
    first = [row["arrivals"][0] - row["sent"] for row in answers]
    spread = [(row["arrivals"][-1] - row["arrivals"][0]) / max(1, row["tokens"] - 1) for row in answers]
    pieces = [b - a for row in answers for a, b in zip(row["arrivals"], row["arrivals"][1:], strict=False)]
    over = [served / bare for bare, served in zip(rates["engine"], rates["served"], strict=True)]
    return {
        "streams": streams,
        "tokens_per_second": {way: round(statistics.median(found), 1) for way, found in rates.items()},
        "served_over_engine": round(statistics.median(over), 3),
        "time_to_first_token_ms": percentiles(first),
        "between_tokens_ms": percentiles(spread),
        "between_pieces_ms": percentiles(pieces or [0.0]),
        "requests": len(answers),
        "tokens_of_an_answer": round(statistics.mean(row["tokens"] for row in answers), 1),
        "pieces_of_an_answer": round(statistics.mean(len(row["arrivals"]) for row in answers), 1),
        "cpu_ms_a_request": {name: round(1000 * seconds / len(answers), 2) for name, seconds in cpu.items()},
    }


if __name__ == "__main__":
    typer.run(main)
