"""Segments end where every tokenizer and a character end; experts of several tokenizers vote on them."""

from itertools import pairwise

import numpy as np
import pytest

from ensemw2s.boosting import samme
from ensemw2s.boosting.segments import numbered, segment_ids, segment_votes


def ids(text: str, *spellings: list[bytes]) -> list[list[int]]:
    return [own.tolist() for own in segment_ids(text.encode(), spellings)]


def test_a_segment_ends_where_every_tokenizer_has_a_tokens_end():
    one, other = ids("3 9 14", [b"3", b" 9", b" 14"], [b"3 ", b"9", b" ", b"14"])

    assert one == [0, 0, 1, 2], "3 and ' 9' end apart: only ' 9' ends with the other's 9"
    assert other == [0, 0, 1, 1, 2]


def test_with_one_tokenizer_every_token_is_a_segment_and_the_end_is_one():
    assert ids("3 9 14", [b"3", b" 9", b" 14"]) == [[0, 1, 2, 3]]


def test_a_boundary_inside_a_character_is_none():
    one, other = ids("aé!", [b"a", b"\xc3", b"\xa9", b"!"], [b"a\xc3", b"\xa9", b"!"])

    assert one == [0, 0, 0, 1, 2]
    assert other == [0, 0, 1, 2]


def test_an_answer_that_a_tokenizer_does_not_spell_is_one_segment():
    assert ids("a€", [b"a", b"\xe2\x82\xac"], [b"a", b""]) == [[0, 0, 1], [0, 0, 1]]


def test_an_empty_answer_has_its_end_alone():
    assert ids("", [], []) == [[0], [0]]


@pytest.mark.parametrize("text", ["3 9 14", "añ o", "x", "東京 🙂\r\n"])
def test_all_tokenizers_have_the_same_segments_and_none_is_empty(text):
    data, rng = text.encode(), np.random.default_rng(len(text))

    def cut() -> list[bytes]:
        inner = np.flatnonzero(rng.random(len(data) - 1) < 0.5) + 1
        bounds = [0, *inner.tolist(), len(data)]
        return [data[a:b] for a, b in pairwise(bounds)]

    for _ in range(20):
        found = segment_ids(data, [cut(), cut(), cut()])
        counted = [np.unique(own).tolist() for own in found]
        assert counted[0] == counted[1] == counted[2] == list(range(found[0][-1] + 1))
        assert all((np.diff(own) >= 0).all() for own in found)


def test_answers_are_numbered_through():
    segments, counts = numbered([np.array([0, 0, 1]), np.array([0]), np.array([0, 1, 2])])

    assert (segments.tolist(), counts) == ([0, 0, 1, 2, 3, 4, 5], [2, 1, 3])


def test_with_one_tokenizer_errors_and_votes_are_those_of_tokens():
    rng = np.random.default_rng(0)
    by_id = [None, *(bytes([97 + i]) for i in range(5))]
    true = rng.integers(0, 6, 60)
    experts = np.where(rng.random((3, 60)) < 0.6, true, rng.integers(0, 6, (3, 60)))
    votes, [truth, *_] = map(list, zip(*(segment_votes(e, true, np.arange(60), by_id) for e in experts), strict=True))

    assert np.array_equal(np.stack(votes) != truth, experts != true)
    alphas = [0.7, 0.5, 0.4]  # no two of them tie with the third
    wrong = samme.committee_vote(np.stack(votes), alphas) != truth
    assert np.array_equal(wrong, samme.committee_vote(experts, alphas) != true)


def test_experts_of_two_tokenizers_agree_on_bytes():
    ab = segment_votes(np.array([1]), np.array([2]), np.array([0]), [None, b"ab", b"cd"])
    a_b = segment_votes(np.array([1, 2]), np.array([3, 4]), np.array([0, 0]), [None, b"a", b"b", b"c", b"d"])

    assert (ab[0], ab[1]) == (a_b[0], a_b[1])
    assert ab[0] != ab[1]


def test_right_bytes_of_wrong_tokens_are_wrong():
    by_id = [None, b"a", b"b", b"ab", b"c", b"bc"]  # the text is "ab" "c", the expert says "a" "bc"
    vote, truth = segment_votes(np.array([1, 5]), np.array([3, 4]), np.array([0, 0]), by_id)

    assert vote != truth
