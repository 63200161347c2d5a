"""Requests that are wrong, hostile or far too large, and clients that only say half of what they promised. Each of them
gets an answer of its own or loses its connection; none may cost another client anything.
"""

import contextlib
import json
import socket
from collections import Counter
from urllib.parse import urlsplit

import requests

PROMPT = {"prompt": "sort these 3 1 2", "max_tokens": 4}

BODIES = {
    "weights without a sum": {"ensemble": {"weights": {"round-1": 1e308, "round-2": 1e308}}},
    "weights of nothing": {"ensemble": {"weights": {"round-1": 0, "round-2": 0}}},
    "a long prompt": {"prompt": "1 " * 400_000},
    "a prompt without end": {"prompt": "x" * 1_500_000},
    "tokens that there are not": {"prompt": [10**9, -1, 2**70]},
    "half of a character": {"prompt": "\ud800 3 1 2"},
    "a temperature of text": {"temperature": "hot"},
    "a huge temperature": {"temperature": 1e308},
    "a bias for all": {"logit_bias": {str(token): -100 for token in range(200)}},
    "a bias for a token that there is not": {"logit_bias": {"1000000": 5}},
    "an infinite penalty": {"repetition_penalty": 1e308, "presence_penalty": -1e308},
    "stops of all kinds": {"stop": ["x" * 10_000] * 500},
    "many answers": {"n": 100_000},
    "an endless answer": {"max_tokens": 2**62},
    "a grammar that is none": {"structured_outputs": {"grammar": "root ::= ((("}},
    "a pattern that explodes": {"structured_outputs": {"regex": "(a{1,1000}){1,1000}b" * 20}},
    "a schema that names itself": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}}
    },
    "no choice": {"structured_outputs": {"choice": []}},
    "a seed that is too large": {"seed": 2**200},
    "a model that there is not": {"model": "nobody"},
    "many log-probabilities": {"logprobs": 10**6, "prompt_logprobs": 10**6},
    "many words to leave out": {"bad_words": ["x" * 100] * 2000},
}
"""Bodies of /v1/completions, beside `PROMPT`."""

RAW = {
    "no JSON": b"{" * 5000,
    "deep JSON": b'{"prompt": ' + b"[" * 50_000,
    "no number": b'{"prompt": "x", "temperature": NaN}',
    "no UTF-8": b'{"prompt": "\xff\xfe"}',
    "no object": b"[]",
    "nothing": b"",
}
"""Bodies as bytes."""

HALVES = {
    "a body that never comes": b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000000000\r\n\r\n{",
    "half of the headers": b"POST /v1/completions HTTP/1.1\r\nHost: loc",
    "headers without end": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nA: " + b"x" * 300_000,
    "another protocol": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "another host": b"GET / HTTP/1.1\r\nHost: attacker.example\r\n\r\n",
}
"""What is sent over a connection that then says no more."""


def poison(url: str) -> Counter[str]:
    """Sends each of them once. Returns how many ended how: by status, or `closed`."""
    ends: Counter[str] = Counter()
    target = f"{url}/v1/completions"
    sent = [json.dumps({"model": "ensemble", **PROMPT, **body}).encode() for body in BODIES.values()]
    with requests.Session() as session:
        for body in (*sent, *RAW.values()):
            answer = session.post(target, data=body, headers={"Content-Type": "application/json"}, timeout=60)
            ends[str(answer.status_code)] += 1
            assert answer.status_code == 200 or answer.json()["error"]["message"]
    where = urlsplit(url)
    slow = [socket.create_connection((where.hostname, where.port), timeout=20) for _ in HALVES]
    for connection, half in zip(slow, HALVES.values(), strict=True):
        with contextlib.suppress(OSError):
            connection.sendall(half)
        ends["half"] += 1
    for connection in slow:
        connection.close()
    return ends
