"""How a command ends: what it raises goes in, one line on stderr and an exit code come out, and no trace unasked.

Apart from the commands so that the codes are decided in one place: 0 done, 1 the work failed, 2 bad usage or config,
130 stopped by Ctrl-C, 143 stopped by SIGTERM, 141 the reader of the output left (as the shell says of a program that a
closed pipe ends).
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import typer
from rich.console import Console

from ensemw2s.errors import ConfigError, DataError, EnsemW2SError, ModelError, ResourceError

FAILED, BAD_USAGE, INTERRUPTED, CLOSED_PIPE, TERMINATED = 1, 2, 130, 141, 143

PLAIN = str.maketrans({"–": "-", "—": "-", "−": "-", "×": "x", "…": "...", "‘": "'", "’": "'", "“": '"', "”": '"'})
"""What our own words have beyond ASCII, and how they look without it."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: whatever cleans up after Ctrl-C does so after this, too."""


class Output(Console):
    """Standard output. A closed pipe is an error like another, for `outcome` to deal with."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def say(text: str, end: str = "\n") -> None:
    """Prints a line as it is: no wrapping, no colours, no markup."""
    Output().print(text, end=end, soft_wrap=True, highlight=False, markup=False)


@contextmanager
def before_work() -> Iterator[None]:
    """Around checks before anything starts: data, models and resources that do not fit the config make it a bad one."""
    try:
        yield
    except (DataError, ModelError, ResourceError) as error:
        raise ConfigError(str(error)) from error


@contextmanager
def outcome(*, debug: bool, resumable: bool = False) -> Iterator[None]:
    """Around a whole command: turns whatever stops it into a line and an exit code.

    Args:
        debug: Show the trace, too.
        resumable: What is finished is used when the same command is given again.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            show_what_fits(stream)
    stopped = "stopped" + (": the same command continues from what is finished" if resumable else "")
    try:
        with _terminable():
            yield
    except typer.Exit:
        raise
    except Terminated:
        _end(TERMINATED, stopped)
    except KeyboardInterrupt:
        _end(INTERRUPTED, stopped)
    except BrokenPipeError:
        # what is still buffered would raise again when Python flushes it at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(CLOSED_PIPE) from None
    except ConfigError as error:
        _end(BAD_USAGE, f"error: {error}", debug=debug)
    except EnsemW2SError as error:
        _end(FAILED, f"error: {_line(error)}", debug=debug)
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "; free some, then give the same command again" if full else ""
        _end(FAILED, f"error: {where}{error.strerror or _line(error)}{advice}", debug=debug)
    except Exception as error:
        hint = "" if debug else "; run with --debug for the trace"
        _end(FAILED, f"internal error: {type(error).__name__}: {_line(error)}{hint}", debug=debug)


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises `Terminated` in the main thread. While Ray starts, its own handler raises `SystemExit`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not cut off the cleaning up
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except SystemExit as end:
        if end.code == signal.SIGTERM:
            raise Terminated from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def show_what_fits(stream: io.TextIOWrapper) -> None:
    """Lets a stream show `PLAIN` characters, or a question mark, in place of those that its encoding does not have."""
    if stream.errors in ("strict", "backslashreplace"):  # Python's own choices for stdout and stderr
        codecs.register_error("plain", _plain)
        stream.reconfigure(errors="plain")


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(PLAIN)
    return "".join(letter if letter.isascii() else "?" for letter in text), error.end


def _end(code: int, line: str, *, debug: bool = False) -> NoReturn:
    if debug:
        traceback.print_exc()
    print(line, file=sys.stderr, flush=True)
    raise typer.Exit(code) from None


def _line(error: BaseException) -> str:
    """The message on one line."""
    return " ".join(str(error).split()) or "no message"
