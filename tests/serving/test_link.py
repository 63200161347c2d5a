"""Pieces on their way from replicas to the front, over real connections."""

import asyncio

import pytest
import uvloop

from ensemw2s.serving.exchange import Piece, Token
from ensemw2s.serving.link import LENGTH, Inbox, Outbox

TOKEN = Token(
    5, "é", "é", [195, 169], -0.5, 1.0, 0.0,
    [(5, "é", [195, 169], -0.5)],
    [[(5, "é", [195, 169], -0.25)], [(7, "\n", [10], -1.0)]],
)  # fmt: skip


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request):
    """Serve runs replicas in uvloop."""
    return request.param


async def until(true) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.005)


def test_pieces_of_several_answers_arrive_whole_and_in_their_order(run):
    async def several():
        inbox, came = Inbox("127.0.0.1"), {0: [], 1: []}
        with inbox.expect(came[0].append) as first, inbox.expect(came[1].append) as second:
            outbox = await Outbox.connect((await inbox.reply(first)).front)
            await asyncio.to_thread(outbox.put, first, Piece("a", 1, 3, [TOKEN]))
            outbox.put(second, Piece("x" * 300_000, 1, 3))
            outbox.flush()
            outbox.put(first, Piece("", 0, 3, [], "stop"))
            outbox.flush()
            await until(lambda: len(came[0]) == 2 and came[1])
        outbox.put(first, Piece("nobody waits for this", 1, 3))
        outbox.flush()
        outbox.close()
        inbox.close()
        return came

    came = run(several())
    assert [piece.text for piece in came[0]] == ["a", ""]
    assert came[0][1].finish == "stop"
    assert [list(map(tuple, top)) for top in came[0][0].tokens[0].votes] == TOKEN.votes
    assert came[0][0].tokens[0]._replace(likeliest=0, votes=0) == TOKEN._replace(likeliest=0, votes=0)
    assert len(came[1][0].text) == 300_000


def test_who_does_not_know_the_secret_is_not_listened_to(run):
    async def strangers():
        inbox, came = Inbox("127.0.0.1"), []
        with inbox.expect(came.append) as number:
            front = (await inbox.reply(number)).front
            ends = []
            for secret in ("", "0" * len(front.secret)):
                outbox = await Outbox.connect(front._replace(secret=secret))
                outbox.put(number, Piece("wrong", 1, 3))
                outbox.flush()
                await until(lambda outbox=outbox: outbox.lost)
                ends.append(outbox.lost)
            reader, writer = await asyncio.open_connection(front.host, front.port)
            writer.write(LENGTH.pack(2**31))
            ends.append(await reader.read() == b"")
            writer.close()
        inbox.close()
        return came, ends

    assert run(strangers()) == ([], [True, True, True])


def test_a_lost_connection_cancels_who_needs_it(run):
    async def lose():
        inbox = Inbox("127.0.0.1")
        outbox = await Outbox.connect((await inbox.reply(0)).front)

        async def work():
            with outbox.used():
                await asyncio.sleep(60)

        working, idle = asyncio.create_task(work()), asyncio.create_task(asyncio.sleep(0.2, "not disturbed"))
        await asyncio.sleep(0.05)
        outbox.close()
        ended = await asyncio.gather(working, idle, return_exceptions=True)
        inbox.close()
        return outbox.lost, ended

    lost, (working, idle) = run(lose())
    assert lost
    assert isinstance(working, asyncio.CancelledError)
    assert idle == "not disturbed"
