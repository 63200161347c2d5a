"""What comes from the network: heads without bounds, slow senders, too many connections, answers that nobody reads."""

import asyncio
import contextlib

import pytest

from ensemw2s.serving.listener import listening
from ensemw2s.serving.settings import Limits

LIMITS = Limits(
    header_bytes=4000,
    headers=20,
    header_seconds=0.3,
    body_seconds=0.3,
    read_seconds=0.3,
    connections=3,
    body_bytes=1000,
)
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n"


async def app(scope, receive, send):
    """Reads the body unless told not to, and answers as much as it is asked for."""
    size = int(scope["path"].removeprefix("/") or 2)
    if scope["path"] != "/0":
        while (message := await receive()).get("more_body"):
            pass
        if message["type"] == "http.disconnect":
            return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
    await send({"type": "http.response.body", "body": b"x" * size})


@contextlib.asynccontextmanager
async def endpoint(free_port):
    port = free_port()
    async with listening(app, ("127.0.0.1", port), LIMITS):

        async def connect():
            while True:
                with contextlib.suppress(ConnectionRefusedError):
                    return await asyncio.open_connection("127.0.0.1", port)
                await asyncio.sleep(0.01)

        yield connect


async def told(connect, *pieces: bytes) -> bytes:
    """All that comes back until the connection ends."""
    reader, writer = await connect()
    with contextlib.suppress(ConnectionError):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(20):
            found = await reader.read()
    writer.close()
    return found


def run(free_port, what):
    async def all_of_it():
        async with endpoint(free_port) as connect:
            return await what(connect)

    return asyncio.run(all_of_it())


CASES = {
    "one header without end": ([b"GET / HTTP/1.1\r\nA: " + b"x" * 300_000], b"431"),
    "many headers": ([b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 30 + b"\r\n"], b"431"),
    "large headers": ([b"GET / HTTP/1.1\r\n" + b"A: %s\r\n" % (b"x" * 1000) * 5 + b"\r\n"], b"431"),
    "an address without end": ([b"GET /" + b"x" * 100_000], b"431"),
    "nothing at all": ([], b"408"),
    "half of the headers": ([b"GET / HTTP/1.1\r\nHost"], b"408"),
    "half of the body": ([POST + b"\r\n12345"], b"408"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_client_that_sends_too_much_or_too_slowly_is_told_so_and_leaves(free_port, case):
    pieces, status = CASES[case]
    answer = run(free_port, lambda connect: told(connect, *pieces))
    assert answer.startswith(b"HTTP/1.1 " + status), answer[:200]
    assert b'{"error": {"message": "' in answer


@pytest.mark.slow
def test_the_connection_of_a_body_that_nobody_wants_ends(free_port):
    answer = run(free_port, lambda connect: told(connect, POST.replace(b"POST /", b"POST /0") + b"\r\n123"))
    assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.slow
def test_ordinary_requests_are_answered_one_after_the_other(free_port):
    async def both(connect):
        reader, writer = await connect()
        for body in (b"0123456789", b"9876543210"):
            writer.write(POST + b"\r\n" + body)
            await asyncio.sleep(0.4)  # longer than headers and bodies may take: nobody waits for any
            async with asyncio.timeout(20):
                assert (await reader.readuntil(b"xx")).startswith(b"HTTP/1.1 200")
        writer.close()

    run(free_port, both)


@pytest.mark.slow
def test_there_are_no_more_connections_than_allowed(free_port):
    async def many(connect):
        open_ones = [await connect() for _ in range(3)]
        answer = await told(connect)
        for _, writer in open_ones:
            writer.close()
        return answer

    assert b"503" in run(free_port, many)


@pytest.mark.slow
def test_an_answer_that_nobody_reads_ends_with_its_connection(free_port):
    async def unread(connect):
        reader, writer = await connect()
        reader._transport.pause_reading()
        writer.write(b"GET /50000000 HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.sleep(1)
        reader._transport.resume_reading()
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(20):
                return len(await reader.read())
        return 0

    assert run(free_port, unread) < 50_000_000
