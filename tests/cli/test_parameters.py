"""Commands that take a dataclass: the command line gets one option for each of its fields."""

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from ensemw2s.cli.parameters import spread


@dataclass(frozen=True, kw_only=True)
class Shared:
    size: Annotated[int, typer.Option("--size", help="How large.", min=1)] = 3
    names: Annotated[list[str] | None, typer.Option("--name", help="Repeatable.")] = None


@dataclass(frozen=True, kw_only=True)
class Own(Shared):
    target: Annotated[str, typer.Option("--target", help="Where to.")]


@pytest.fixture
def called():
    """Calls a command that takes an option model and a parameter; gives what it got, or the exit code and the text."""

    def call(*arguments: str):
        got = []

        def command(given: Own, debug: Annotated[bool, typer.Option("--debug")] = False) -> None:
            """Does it."""
            got.append((given, debug))

        app = typer.Typer()
        app.command()(spread(command))
        result = CliRunner().invoke(app, list(arguments), env={"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "160"})
        return got[0] if got else (result.exit_code, result.output)

    return call


def test_each_field_is_an_option(called) -> None:
    given = called("--target", "x", "--size", "5", "--name", "a", "--name", "b", "--debug")
    assert given == (Own(target="x", size=5, names=["a", "b"]), True)


def test_fields_that_are_not_given_have_their_defaults(called) -> None:
    assert called("--target", "x") == (Own(target="x", size=3, names=None), False)


def test_a_field_without_a_default_is_required(called) -> None:
    code, text = called("--size", "5")
    assert code == 2
    assert "--target" in text


def test_bounds_of_a_field_hold(called) -> None:
    code, text = called("--target", "x", "--size", "0")
    assert code == 2
    assert "--size" in text


def test_help_has_the_command_s_docstring_and_the_fields(called) -> None:
    code, text = called("--help")
    assert code == 0
    assert "Does it." in text
    assert "How large." in text
    assert "Where to." in text
