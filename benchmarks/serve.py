"""What HTTP, Ray Serve and streams cost beside the bare engine, and how long requests wait for their tokens.

    python benchmarks/serve.py --base DIR                       # a causal LM in a folder, with LoRA members
    python benchmarks/serve.py                                  # random members of the tiny family

An `ensemw2s serve` with one replica, and clients that each send one streamed request after another, all of one length.
The bare engine decodes the same requests at the same batch in a process of its own that has as many threads. Both are
measured in turns; JSON goes to standard output.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import numpy as np
import requests
import torch
import typer
from decode import TEXT, machine, save_random_ensemble, write

from ensemw2s.ensemble.engine import Engine
from ensemw2s.ensemble.requests import Request
from ensemw2s.ensemble.sampling import Sampling
from ensemw2s.ensemble.voter import Voter, load_voters

MODEL = "ensemble"


@contextmanager
def endpoint(ensemble: Path, slots: int, threads: int, limit: int) -> Iterator[str]:
    """Address of an `ensemw2s serve` that is up."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "models": [{"name": MODEL, "path": str(ensemble), "slots": slots, "cpus": threads}],
        "limits": {"max_tokens": limit},
    }
    file = ensemble.parent / "serve.json"  # JSON is YAML
    file.write_text(json.dumps(settings), encoding="utf-8")
    program = Path(sys.executable).with_name("ensemw2s")
    command = [program, "serve", "--settings", file, "--port", port, "--cpus", threads]
    process = subprocess.Popen([str(part) for part in command], stdout=sys.stderr)
    try:
        url = f"http://127.0.0.1:{port}"
        end = time.time() + 180
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


async def request(client: aiohttp.ClientSession, tokens: int, seed: int) -> dict[str, Any]:
    """Times of one streamed answer: when its request went, and when which tokens came."""
    body = {
        "model": MODEL, "prompt": TEXT, "max_tokens": tokens, "temperature": 1.0, "seed": seed, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    sent, arrivals, count = time.perf_counter(), [], 0
    async with client.post("/v1/completions", json=body) as answer:
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line.removeprefix(b"data: "))
            if "error" in chunk:
                raise RuntimeError(chunk["error"]["message"])
            if usage := chunk.get("usage"):
                count = usage["completion_tokens"]
            else:
                arrivals.append(time.perf_counter())
    return {"sent": sent, "arrivals": arrivals, "tokens": count}


def _session(url: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        url, connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(600), raise_for_status=True
    )


async def load(url: str, streams: int, tokens: int, rounds: int) -> list[dict[str, Any]]:
    """So many clients at a time, each with so many requests one after another."""
    async with _session(url) as client:

        async def one(number: int) -> list[dict[str, Any]]:
            return [await request(client, tokens, number * rounds + i) for i in range(rounds)]

        return [row for rows in await asyncio.gather(*(one(number) for number in range(streams))) for row in rows]


def rate(rows: list[dict[str, Any]]) -> float:
    """Tokens a second, from the first request to the last token."""
    end = max(row["arrivals"][-1] for row in rows)
    return sum(row["tokens"] for row in rows) / (end - min(row["sent"] for row in rows))


def percentiles(values: list[float]) -> dict[str, float]:
    """p50, p95 and p99 of seconds, in milliseconds."""
    return {f"p{p}": round(1000 * float(np.percentile(values, p)), 2) for p in (50, 95, 99)}


class Bare:
    """The engine in a process of its own, so that it shares nothing with clients; speaks JSON lines."""

    def __init__(self, ensemble: Path, slots: int, threads: int) -> None:
        command = [sys.executable, __file__, "--bare", str(ensemble), "--slots", str(slots)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def rate(self, streams: int, tokens: int, rounds: int) -> float:
        """Tokens a second."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps([streams, tokens, rounds]) + "\n")
        self.process.stdin.flush()
        return float(json.loads(self.process.stdout.readline()))

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
    prompt = list(loaded.tokenizer(TEXT)["input_ids"])
    for line in sys.stdin:
        streams, tokens, rounds = json.loads(line)
        began, count = time.perf_counter(), 0
        for one in range(rounds):
            seeds = range(one * streams, (one + 1) * streams)
            asked = [_request(prompt, tokens, seed, loaded.eos_id) for seed in seeds]
            count += sum(len(generation.token_ids) for _, generation in engine.run(asked))
        print(count / (time.perf_counter() - began), flush=True)


def _request(prompt: list[int], tokens: int, seed: int, eos_id: int) -> Request:
    return Request(prompt, tokens, (eos_id,), Sampling(1.0), seed)


async def beside_a_long_one(url: str, short: int, long: int, count: int) -> dict[str, Any]:
    """Seconds of short requests, alone and while a long one runs."""
    async with _session(url) as client:

        async def seconds(seed: int) -> float:
            row = await request(client, short, seed)
            return float(row["arrivals"][-1] - row["sent"])

        alone = [await seconds(seed) for seed in range(count)]
        running = asyncio.create_task(request(client, long, 0))
        beside: list[float] = []
        while not running.done() and len(beside) < count:
            beside.append(await seconds(len(beside)))
        finished = running.done()
        await running
    return {
        "short_tokens": short,
        "long_tokens": long,
        "alone_ms": percentiles(alone),
        "beside_ms": percentiles(beside),
        "requests_beside": len(beside),
        "long_one_ran_all_the_while": not finished,
    }


def main(
    base: Annotated[Path | None, typer.Option(help="Folder of a causal LM; none: the tiny family.")] = None,
    members: Annotated[int, typer.Option(help="Members.")] = 4,
    streams: Annotated[str, typer.Option(help="Streams at a time.")] = "1,4,16,64",
    slots: Annotated[int, typer.Option(help="Slots of the engine.")] = 64,
    threads: Annotated[int, typer.Option(help="Threads of the replica, and of the bare engine.")] = 1,
    new_tokens: Annotated[int, typer.Option(help="Length of an answer.")] = 64,
    rounds: Annotated[int, typer.Option(help="Requests of a client, one after another.")] = 3,
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
        with endpoint(ensemble, slots, threads, max(new_tokens, long_tokens)) as url:
            for number in map(int, streams.split(",")):
                rows.append(compare(engine, url, number, new_tokens, rounds, turns))
            engine.close()
            mixed = asyncio.run(beside_a_long_one(url, 8, long_tokens, short_count))
    result = {
        "machine": machine(threads),
        "base": base.name if base else "tiny family",
        "kind": "lora" if base else "full",
        "members": members,
        "slots": slots,
        "new_tokens": new_tokens,
        "turns": turns,
        "rows": rows,
        "beside_a_long_request": mixed,
    }
    write(result, output)


def compare(engine: Bare, url: str, streams: int, tokens: int, rounds: int, turns: int) -> dict[str, Any]:
    """One line of the table, after a turn that is not measured."""
    rates: dict[str, list[float]] = {"engine": [], "served": []}
    answers: list[dict[str, Any]] = []
    for turn in range(turns + 1):
        bare = engine.rate(streams, tokens, rounds)
        found = asyncio.run(load(url, streams, tokens, rounds))
        if turn:
            rates["engine"].append(bare)
            rates["served"].append(rate(found))
            answers += found
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
    }


if __name__ == "__main__":
    typer.run(main)
