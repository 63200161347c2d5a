"""How a command ends: codes, one line, and what its streams can show."""

import io
import signal
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import typer

from ensemw2s.cli.outcome import outcome, show_what_fits


def ended_by(stop: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(typer.Exit) as end, outcome(debug=False, resumable=True):
        stop()
    return end.value.exit_code, capsys.readouterr().err


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C interrupts, even where these tests run as a job in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def ray_ends_it() -> None:
    """What Ray's own handler does while Ray starts."""
    raise SystemExit(signal.SIGTERM)


STOPPED = "stopped: the same command continues from what is finished\n"


@pytest.mark.parametrize(
    ("stop", "code"),
    [
        (partial(signal.raise_signal, signal.SIGTERM), 143),
        (ray_ends_it, 143),
        (partial(signal.raise_signal, signal.SIGINT), 130),
    ],
    ids=["SIGTERM", "SIGTERM while Ray starts", "Ctrl-C"],
)
def test_a_command_that_is_stopped_says_so_in_one_line(capsys, interruptible, stop, code):
    before = signal.getsignal(signal.SIGTERM)
    assert ended_by(stop, capsys) == (code, STOPPED)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_sigterm_does_not_cut_off_the_cleaning_up(capsys):
    cleaned = []

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            cleaned.append(True)

    assert ended_by(work, capsys) == (143, STOPPED)
    assert cleaned


@pytest.mark.parametrize("errors", ["strict", "backslashreplace"])
@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", "5-6 x 2 ? ..."), ("latin-1", "5-6 × 2 ? ..."), ("utf-8", "5–6 × 2 ✓ …")],
)
def test_a_stream_shows_something_like_what_it_does_not_have(encoding, errors, shown):
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding=encoding, errors=errors)
    show_what_fits(stream)
    stream.write("5–6 × 2 ✓ …")
    stream.flush()
    assert written.getvalue().decode(encoding) == shown


def test_half_of_a_surrogate_pair_is_shown_as_a_question_mark():
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="utf-8")
    show_what_fits(stream)
    stream.write("a\ud83d b")
    stream.flush()
    assert written.getvalue() == b"a? b"
