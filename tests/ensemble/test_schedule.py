"""Slots without any model: what is copied is written down, and slots are read as the names of who has them."""

import pytest

from ensemw2s.ensemble.requests import Request
from ensemw2s.ensemble.running import Running
from ensemw2s.ensemble.schedule import Schedule


class Copies:
    """Stands for the caches: what a slot holds is the key of who was read there."""

    def __init__(self) -> None:
        self.held: dict[int, int] = {}

    def copy(self, source: int, target: int) -> None:
        self.held[target] = self.held.get(source, 0)


@pytest.fixture
def copies() -> Copies:
    return Copies()


def wait(schedule: Schedule, *lengths: int) -> None:
    """Requests with prompts of so many tokens; their keys are 1, 2, …."""
    for length in lengths:
        key = 1 + len(schedule.waiting) + len(schedule.rows)
        prompt = [5] * length
        schedule.waiting.append(Running(key, Request(prompt, 4), list(prompt), length, [1.0], None))


def read(schedule: Schedule, copies: Copies, *, all_of_it: bool = True) -> None:
    for slot, row in enumerate(schedule.rows):
        copies.held[slot] = row.key
        row.read = row.prompt_length - 1 if all_of_it else row.read
    schedule.finish_reading()


def keys(schedule: Schedule) -> list[int]:
    return [row.key for row in schedule.rows]


def test_as_many_requests_are_admitted_as_there_are_slots(copies):
    schedule = Schedule(2, 100, copies.copy)
    wait(schedule, 3, 3, 3)
    schedule.admit()
    assert keys(schedule) == [1, 2]
    assert [row.key for row in schedule.waiting] == [3]


def test_no_more_prompts_are_admitted_than_a_chunk_can_read(copies):
    schedule = Schedule(8, 10, copies.copy)
    wait(schedule, 6, 6, 2)
    schedule.admit()
    assert keys(schedule) == [1], "the second would make it twelve tokens, and the third waits behind it"


def test_nobody_is_admitted_while_short_prompts_are_being_read(copies):
    schedule = Schedule(8, 10, copies.copy)
    wait(schedule, 6, 6)
    schedule.admit()
    schedule.admit()
    assert keys(schedule) == [1]
    read(schedule, copies)
    schedule.admit()
    assert keys(schedule) == [1, 2]
    assert schedule.ready == 1


def test_a_long_prompt_is_read_in_the_last_slot_and_others_go_before_it(copies):
    schedule = Schedule(8, 10, copies.copy)
    wait(schedule, 50, 3)
    schedule.admit()
    assert keys(schedule) == [2, 1]
    copies.held = {0: 2, 1: 1}
    schedule.rows[0].read = 2
    schedule.finish_reading()
    assert [row.key for row in schedule.answering] == [2]
    schedule.waiting.append(Running(9, Request([5], 4), [5], 1, [1.0], None))
    schedule.admit()
    assert keys(schedule) == [2, 9, 1]
    assert copies.held[2] == 1, "what was read of the long prompt moved with it"


@pytest.mark.parametrize("slot", [0, 1, 2])
def test_a_slot_that_is_freed_goes_to_the_last_row_with_all_that_was_read(copies, slot):
    schedule = Schedule(4, 100, copies.copy)
    wait(schedule, 3, 3, 3)
    schedule.admit()
    read(schedule, copies)
    schedule.release(slot)
    assert schedule.ready == len(schedule.rows) == 2
    assert [copies.held[i] for i in range(2)] == keys(schedule)


def test_a_freed_slot_leaves_rows_that_are_answered_before_those_that_are_read(copies):
    schedule = Schedule(4, 100, copies.copy)
    wait(schedule, 3, 3)
    schedule.admit()
    read(schedule, copies)
    wait(schedule, 3)
    schedule.admit()
    copies.held[2] = 3
    schedule.release(0)
    assert keys(schedule) == [2, 3]
    assert schedule.ready == 1
    assert [copies.held[i] for i in range(2)] == [2, 3]


def test_a_request_is_removed_wherever_it_is(copies):
    schedule = Schedule(1, 100, copies.copy)
    wait(schedule, 3, 3)
    schedule.admit()
    assert schedule.remove(2).key == 2
    assert not schedule.waiting
    assert schedule.remove(1).key == 1
    assert not schedule.rows
    assert schedule.remove(1) is None
