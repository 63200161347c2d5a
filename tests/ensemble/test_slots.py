import math

import pytest
import torch

from ensemw2s.ensemble.rows import NotStackable
from ensemw2s.ensemble.slots import FEWEST_PRODUCTS, GROWTH, SlotCache, View, attend, causal_mask

MEMBERS, SLOTS, HEADS, SIZE = 2, 3, 2, 4


def view(starts: list[int], q: int, cache: SlotCache, members: tuple[int, int] = (0, MEMBERS), first: int = 0) -> View:
    """What a pass of q tokens a slot looks at, from the slot `first` on; makes room for it."""
    positions = torch.tensor(starts).unsqueeze(-1) + torch.arange(q)
    length = max(starts) + q
    cache.reserve(length)
    return View(
        members=slice(*members),
        slots=slice(first, first + len(starts)),
        positions=positions,
        length=length,
        rows=torch.arange(len(starts)).unsqueeze(-1),
        start=starts[0] if len(set(starts)) == 1 else None,
        whole=(members, len(starts)) == ((0, cache.members), cache.slots),
    )


def write(cache: SlotCache, seen: View) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random keys and values into layer 0; the new keys, and what the cache gives for both."""
    rows = (seen.members.stop - seen.members.start) * len(seen.positions)
    keys, values = (torch.randn(rows, HEADS, seen.positions.shape[1], SIZE) for _ in range(2))
    cache.view = seen
    return keys, *cache.update(keys, values, 0)


@pytest.mark.parametrize("starts", [[0, 0, 0], [2, 0, 5], [3, 3, 3]])
@pytest.mark.parametrize("q", [1, 4])
def test_what_is_written_at_a_position_lies_there(starts, q):
    cache = SlotCache(MEMBERS, SLOTS)
    keys, found, values = write(cache, view(starts, q, cache))
    length = max(starts) + q
    assert found.shape == values.shape == (MEMBERS, SLOTS * HEADS, length, SIZE)
    found = found.view(MEMBERS, SLOTS, HEADS, length, SIZE)
    for slot, start in enumerate(starts):
        assert torch.equal(found[:, slot, :, start : start + q], keys.view(MEMBERS, SLOTS, HEADS, q, SIZE)[:, slot])


def test_few_keys_are_looked_at_together_with_as_many_hidden_ones_as_make_them_fast():
    cache = SlotCache(MEMBERS, SLOTS)
    cache.reserve(2)
    assert cache.looked_at(2, queries=1) == 2  # nothing is known of the heads yet
    write(cache, view([0, 0, 0], 5, cache))
    assert cache.looked_at(6, queries=1) == cache.length == GROWTH
    assert cache.looked_at(6, queries=4) == FEWEST_PRODUCTS // (4 * SIZE)
    assert cache.looked_at(60, queries=4) == 60


def test_room_for_more_keeps_what_was_there():
    cache = SlotCache(MEMBERS, SLOTS)
    keys, *_ = write(cache, view([0, 0, 0], 5, cache))
    before = cache.bytes
    assert cache.length == GROWTH
    _, found, _ = write(cache, view([GROWTH, GROWTH, GROWTH], 1, cache))
    assert cache.length > GROWTH
    assert cache.bytes > before
    found = found.view(MEMBERS * SLOTS, HEADS, GROWTH + 1, SIZE)
    assert torch.equal(found[:, :, :5], keys)
    assert not found[:, :, 5:GROWTH].any()


def test_room_that_is_there_is_not_made_again():
    cache = SlotCache(MEMBERS, SLOTS)
    write(cache, view([0, 0, 0], 5, cache))
    before = cache.bytes
    cache.reserve(GROWTH)
    write(cache, view([GROWTH - 1, 0, 7], 1, cache))
    assert cache.bytes == before


def test_room_grows_by_more_than_was_asked_so_that_copies_are_few():
    cache = SlotCache(1, 1)
    lengths = set()
    for length in range(1, 2000):
        cache.reserve(length)
        assert cache.length >= length
        lengths.add(cache.length)
    assert len(lengths) < 10
    assert all(length % GROWTH == 0 or length <= 2000 + 16 * GROWTH for length in lengths)


def test_a_slot_that_moves_takes_its_keys_along_and_leaves_the_others():
    cache = SlotCache(MEMBERS, SLOTS)
    keys, *_ = write(cache, view([0, 0, 0], 5, cache))
    cache.move(2, 0)
    _, found, _ = write(cache, view([5, 5, 5], 1, cache))
    keys, found = keys.view(MEMBERS, SLOTS, -1), found.view(MEMBERS, SLOTS, HEADS, 6, SIZE)[:, :, :, :5].flatten(2)
    for slot, source in enumerate((2, 1, 2)):
        assert torch.equal(found[:, slot], keys[:, source])


def test_a_part_of_the_members_and_slots_can_be_written_alone():
    cache = SlotCache(MEMBERS, SLOTS)
    keys, *_ = write(cache, view([0, 0, 0], 3, cache))
    part, found, _ = write(cache, view([0, 1], 2, cache, members=(1, 2), first=1))
    assert found.shape == (1, 2 * HEADS, 3, SIZE)
    expected = keys.view(MEMBERS, SLOTS, HEADS, 3, SIZE).clone()
    expected[1, 1, :, 0:2], expected[1, 2, :, 1:3] = part
    _, found, _ = write(cache, view([3, 3, 3], 1, cache))
    assert torch.equal(found.view(MEMBERS, SLOTS, HEADS, 4, SIZE)[:, :, :, :3], expected)


def naive(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, position: int, window: int, scale: float
) -> torch.Tensor:
    """One query `[size]` at a position over keys `[length, size]`, number by number."""
    seen = range(max(0, position - window + 1), position + 1)
    scores = torch.tensor([float(query @ keys[p]) * scale for p in seen]).softmax(-1)
    return sum(score * values[p] for score, p in zip(scores, seen, strict=True))


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("q", [1, 3, 20])
@pytest.mark.parametrize("starts", [[4, 4, 4], [6, 0, 3]])
@pytest.mark.parametrize("window", [None, 4])
def test_attention_is_that_of_each_head_and_token_alone(group, q, starts, window):
    torch.manual_seed(0)
    cache = SlotCache(MEMBERS, SLOTS)
    write(cache, view([0, 0, 0], 6, cache))  # what lies before the starts, and what must not be seen beyond them
    seen = view(starts, q, cache)
    _, keys, values = write(cache, seen)
    query = torch.randn(MEMBERS * SLOTS, HEADS * group, q, SIZE)
    mask = causal_mask(seen, HEADS, group, torch.float32)
    scale = None if window else 0.3
    output, _ = attend(torch.nn.Identity(), query, keys, values, mask, scaling=scale, sliding_window=window)
    assert output.shape == (MEMBERS * SLOTS, q, HEADS * group, SIZE)
    keys, values = (part.view(MEMBERS * SLOTS, HEADS, -1, SIZE) for part in (keys, values))
    places = [(row, head, i) for row in range(MEMBERS * SLOTS) for head in range(HEADS * group) for i in {0, q - 1}]
    for row, head, i in places:
        expected = naive(
            query[row, head, i],
            keys[row, head // group],
            values[row, head // group],
            starts[row % SLOTS] + i,
            window or 99,
            scale or 1 / math.sqrt(SIZE),
        )
        torch.testing.assert_close(output[row, i, head], expected, atol=1e-5, rtol=1e-5)


def test_attention_of_other_kinds_is_refused():
    ones = torch.ones(1, 1, 1, 4)
    for option in ("softcap", "s_aux", "position_bias"):
        with pytest.raises(NotStackable, match="soft caps, sinks or biases"):
            attend(torch.nn.Identity(), ones, ones, ones, torch.zeros(1, 1, 1, 1), **{option: torch.ones(1)})


def test_room_that_could_not_be_made_is_made_the_next_time(monkeypatch):
    cache = SlotCache(1, 2)
    cache.reserve(4)
    positions, rows = torch.zeros(2, 1, dtype=torch.int64), torch.arange(2).unsqueeze(-1)
    cache.view = View(slice(0, 1), slice(0, 2), positions, 1, rows, 0, True)
    for layer in range(2):
        cache.update(torch.ones(2, 1, 1, 4), torch.ones(2, 1, 1, 4), layer)
    allocate, left = cache._allocate, [1]

    def fails_the_second_time(like: torch.Tensor, length: int) -> torch.Tensor:
        if not left:
            raise MemoryError
        left.pop()
        return allocate(like, length)

    monkeypatch.setattr(cache, "_allocate", fails_the_second_time)
    with pytest.raises(MemoryError):
        cache.reserve(200)
    monkeypatch.setattr(cache, "_allocate", allocate)
    cache.reserve(200)
    cache.view = View(slice(0, 1), slice(0, 2), positions + 199, 200, rows, 199, True)
    for layer in range(2):
        keys, _ = cache.update(torch.ones(2, 1, 1, 4), torch.ones(2, 1, 1, 4), layer)
        assert keys.shape == (1, 2, 200, 4)
        assert keys[0, 0, 0].tolist() == [1.0] * 4
