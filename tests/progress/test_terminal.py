import io
import json
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from ensemw2s.env import LOG
from ensemw2s.errors import ConfigError
from ensemw2s.progress import Progress
from ensemw2s.progress.terminal import PLAIN_INTERVAL, about


@pytest.fixture(autouse=True)
def _as_text(monkeypatch):
    monkeypatch.delenv(LOG.name, raising=False)


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


def test_an_expected_stage_has_its_number_and_the_training_that_is_left(plain, clock):
    plain.expect({"data": 0, "models": 300, "rounds/1": 100, "students": 200, "evaluation": 0}, ["data"])
    with plain.stage("models", "bases"):
        clock(90)
    with plain.stage("rounds/1", "round"):
        clock(130)
    with plain.stage("students", "students"):
        clock(10)
    with plain.stage("evaluation", "all"):
        pass
    begins = [line for line in text(plain).replace("\n", " ").split("  ") if line.startswith("(")]
    assert [line.split(")")[0] for line in begins] == [
        "(stage 2 of 5",
        "(stage 3 of 5, about 2 min of training left",
        "(stage 4 of 5, about 2 min of training left",
        "(stage 5 of 5",
    ]


def test_a_stage_that_failed_is_not_counted_as_done_and_others_have_no_number(plain, clock):
    plain.expect({"models": 300, "rounds/1": 100})
    with pytest.raises(ValueError, match="x"), plain.stage("models", "bases"):
        raise ValueError("x")
    with plain.stage("rounds/1", "round"), plain.stage("another", "one"):
        clock(5)
    assert "rounds/1  round  (stage 2 of 2)\n" in text(plain)
    assert "another  one\n" in text(plain)


def test_durations_that_nobody_knows_are_rounded():
    assert [about(s) for s in (3, 29, 31, 200, 7799)] == [
        "under a minute",
        "under a minute",
        "about 1 min",
        "about 3 min",
        "about 2 h 10 min",
    ]


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


@pytest.fixture
def collected(monkeypatch):
    """Progress for machines, and what they have read of it."""
    monkeypatch.setenv(LOG.name, "json")
    out = io.StringIO()
    progress = Progress(Console(file=out, width=40, force_terminal=True))
    progress.run = "study"
    return progress, lambda: [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_line_for_machines_says_when_which_run_and_which_stage(collected, clock):
    progress, lines = collected
    with progress, progress.stage("rounds/1", "boosting round 1 of 5"):
        progress.say("  round 1: weighted error 0.1, alpha [2]")
        clock(2.5)
    begin, said, end = lines()
    assert datetime.now(UTC) - datetime.fromisoformat(begin.pop("time")) < timedelta(minutes=1)
    common = {"level": "info", "run": "study", "stage": "rounds/1"}
    assert begin == {**common, "message": "rounds/1  boosting round 1 of 5", "event": "begin"}
    assert said == {**common, "time": said["time"], "message": "round 1: weighted error 0.1, alpha [2]"}
    assert end == {**common, "time": end["time"], "message": "rounds/1  done in 2.5 s", "event": "end", "seconds": 2.5}


def test_counts_are_numbers_for_machines_and_come_as_rarely(collected, clock):
    progress, lines = collected
    with progress:
        for done in range(12):
            progress.update("labels", done, 100, "5 tokens/s")
            clock(1)
    [line] = lines()
    assert (line["task"], line["done"], line["total"], line["stage"]) == ("labels", 10, 100, None)


def test_stages_at_the_same_time_are_not_mixed_up(collected):
    progress, lines = collected

    def beside() -> None:
        with progress.stage("baselines", "beside"):
            progress.say("from beside")

    with progress.stage("rounds/1", "main"):
        thread = threading.Thread(target=beside)
        thread.start()
        thread.join()
        progress.say("from main")
        with progress.stage("inner", "inner"):
            pass
        progress.say("from main again")
    stages = {line["message"]: line["stage"] for line in lines()}
    assert stages["from beside"] == "baselines"
    assert stages["from main"] == stages["from main again"] == "rounds/1"


def test_a_stage_that_failed_says_why_to_machines(collected):
    progress, lines = collected
    with pytest.raises(ValueError, match="no room"), progress.stage("labels", "pseudo-labels"):
        raise ValueError("no room")
    failed = lines()[-1]
    assert (failed["level"], failed["stage"], failed["message"], failed["event"]) == (
        "error", "labels", "no room", "failed",
    )  # fmt: skip


def test_tables_do_not_come_between_lines_for_machines(collected):
    progress, lines = collected
    progress.console.print("a table")
    assert lines() == []


def test_another_form_than_json_and_text_is_refused(monkeypatch):
    monkeypatch.setenv(LOG.name, "yaml")
    with pytest.raises(ConfigError, match="ENSEMW2S_LOG is yaml; expected json or text"):
        Progress()
