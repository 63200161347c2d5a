"""What is allowed is what Python can decode."""

import itertools

from ensemw2s.ensemble.bytewise.utf8 import allowed, unfinished
from ensemw2s.ensemble.bytewise.vocabulary import END


def decodable(text: bytes) -> bool:
    """Whether some bytes behind it make it valid UTF-8."""
    tails = [b"", b"\x80", b"\x80\x80", b"\x80\x80\x80", b"\xbf", b"\xbf\x80", b"\xbf\x80\x80", b"\x90\x80\x80"]
    tails += [b"\xa0\x80", b"\x90\x80"]
    for tail in tails:
        try:
            (text + tail).decode()
        except UnicodeDecodeError:
            continue
        return True
    return False


def test_bytes_are_allowed_where_a_character_can_follow() -> None:
    begun = [b"", *(bytes([b]) for b in range(0xC2, 0xF5))]
    begun += [bytes([a, b]) for a, b in itertools.product([0xE0, 0xE1, 0xED, 0xF0, 0xF4], [0x80, 0x90, 0xA0, 0xBF])]
    for start in begun:
        if decodable(start):
            mask = allowed(start)
            assert [bool(m) for m in mask[:256]] == [decodable(start + bytes([b])) for b in range(256)], start
            assert mask[END] == (start == b"")


def test_the_unfinished_character_is_what_is_missing_bytes() -> None:
    for character in ("a", "é", "東", "🙂"):
        whole = ("x" + character).encode()
        assert unfinished(whole) == b""
        for cut in range(2, len(whole)):
            assert unfinished(whole[:cut]) == whole[1:cut]
    assert unfinished(b"") == b""
