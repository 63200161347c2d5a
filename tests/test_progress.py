import io
import time

import pytest
from rich.console import Console

from ensemw2s.progress import PLAIN_INTERVAL, Progress


@pytest.fixture
def plain() -> Progress:
    return Progress(Console(file=io.StringIO(), width=60, force_terminal=False))


@pytest.fixture
def terminal() -> Progress:
    return Progress(Console(file=io.StringIO(), width=100, force_terminal=True))


def text(progress: Progress) -> str:
    return progress.console.file.getvalue()


@pytest.fixture
def clock(monkeypatch):
    """Seconds that can be moved on."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def test_a_stage_is_announced_and_its_end_says_how_long_it_took(plain, clock):
    with plain.stage("rounds/1", "boosting round 1 of 5"):
        assert text(plain) == "rounds/1  boosting round 1 of 5\n"
        clock(2.5)
    assert text(plain).splitlines()[1:] == ["rounds/1  done in 2.5 s"]


def test_a_stage_that_failed_is_not_called_done(plain):
    with pytest.raises(ValueError, match="x"), plain.stage("labels", "pseudo-labels"):
        raise ValueError("x")
    assert "done" not in text(plain)


def test_without_a_terminal_a_task_gets_a_line_at_most_every_ten_seconds(plain, clock):
    for done in range(100):
        plain.update("labels", done, 100, "5 tokens/s")
        clock(1)
    lines = text(plain).splitlines()
    assert lines[0] == "  labels: 10/100 5 tokens/s"
    assert len(lines) == 9
    assert PLAIN_INTERVAL == 10


def test_tasks_have_clocks_of_their_own(plain, clock):
    plain.update("one", 0, 5)
    clock(6)
    plain.update("two", 0, 5)
    clock(6)
    plain.update("one", 1, 5)
    plain.update("two", 1, 5)
    assert text(plain).splitlines() == ["  one: 1/5"]


def test_short_work_without_a_terminal_says_nothing_in_between(plain, clock):
    for done in range(1, 6):
        plain.update("scoring", done, 5)
        clock(0.5)
    assert text(plain) == ""


def test_a_long_line_is_not_broken(plain):
    plain.say("x" * 200)
    assert text(plain) == "x" * 200 + "\n"


def test_a_terminal_has_a_bar_for_each_task_that_goes_when_it_is_full(terminal):
    with terminal:
        terminal.update("models/weak-0", 1, 4, "loss 2.0")
        terminal.update("models/weak-1", 2, 4)
        assert [task.description for task in terminal._bars.tasks] == ["models/weak-0", "models/weak-1"]
        terminal.update("models/weak-0", 3, 4, "loss 1.0")
        first = terminal._bars.tasks[0]
        assert (first.completed, first.total, first.fields["note"]) == (3, 4, "loss 1.0")
        terminal.update("models/weak-0", 4, 4)
        terminal.update("models/weak-0", 4, 4)
        assert [task.description for task in terminal._bars.tasks] == ["models/weak-1"]
    assert "1/4" in text(terminal)


def test_a_task_that_is_done_at_once_gets_no_bar(terminal):
    with terminal:
        terminal.update("students", 4, 4)
        assert not terminal._bars.tasks


@pytest.mark.parametrize("name", ["runs/[draft]", "runs/[/x]", "a [bold] move"])
def test_square_brackets_in_names_are_no_markup(plain, terminal, name):
    with plain.stage(name, f"what is in {name}"):
        plain.update(name, 0, 5)
    with terminal:
        terminal.update(name, 1, 5, name)
    assert text(plain).splitlines()[0] == f"{name}  what is in {name}"
    assert text(terminal).count(name) >= 2
