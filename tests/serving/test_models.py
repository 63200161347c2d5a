"""An answer that is made again, by another replica, goes on where it was."""

import asyncio
import itertools

from hypothesis import given
from hypothesis import strategies as st

from ensemw2s.serving.exchange import Piece, Token
from ensemw2s.serving.models import _Taken

TEXTS = ["so", "", "rt", " 1", "é2"]
TOKENS = [Token(i, text, text, [*text.encode()], -1.0, 1.0, 0.0, [], []) for i, text in enumerate(TEXTS)]


def cut(places: list[int]) -> list[Piece]:
    """The answer in pieces that end at these tokens."""
    ends = [*sorted({place for place in places if place < len(TOKENS)}), len(TOKENS)]
    return [
        Piece("".join(TEXTS[a:b]), b - a, 3, TOKENS[a:b], "length" if b == len(TOKENS) else None)
        for a, b in itertools.pairwise([0, *ends])
    ]


places = st.lists(st.integers(1, len(TOKENS)), max_size=len(TOKENS))


@given(first=places, second=places, died=st.integers(0, len(TOKENS)))
def test_pieces_that_come_again_are_left_out_however_they_are_cut(first, second, died):
    async def both() -> list[Piece]:
        came: list[Piece] = []
        taken = _Taken(came.append)
        taken.begin_again()
        for piece in cut(first)[:-1][:died]:
            taken.take(piece)
        taken.begin_again()
        for piece in cut(second):
            assert not taken.finished.done()
            taken.take(piece)
        assert taken.finished.done()
        return came

    came = asyncio.run(both())
    assert "".join(piece.text for piece in came) == "".join(TEXTS)
    assert [token for piece in came for token in piece.tokens] == TOKENS
    assert sum(piece.count for piece in came) == len(TOKENS)
    assert [piece.finish for piece in came if piece.finish] == ["length"]
