"""From a source's raw row to an example: column names and Jinja templates over the row.

Raw rows come in, the fields of examples go out. It is a module of its own because the corpus of the tiny models builds
documents with the same templates.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import math
from collections.abc import Callable
from decimal import Decimal
from functools import lru_cache
from typing import Any

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from ensemw2s.config import Columns, MultipleChoice
from ensemw2s.data.examples import content_key
from ensemw2s.data.options import Question, make_question, parted
from ensemw2s.data.rows import JSON, Fields, Row
from ensemw2s.errors import DataError

logger = logging.getLogger(__name__)


class ColumnError(DataError):
    """A row does not have a column that is asked for, or a template fails on it: most likely so in every row."""


class _NullError(Exception):
    """A template used a null value, which would silently print as the word None."""


def _refuse_null(value: Any) -> Any:
    if is_missing(value):
        raise _NullError("a value that it uses is null")
    return value


def is_missing(value: object) -> bool:
    """Whether a value stands for none: null, or NaN (which is not equal to itself)."""
    return value is None or (isinstance(value, (float, Decimal)) and value != value)


_ENVIRONMENT = SandboxedEnvironment(undefined=StrictUndefined, finalize=_refuse_null, autoescape=False)


@lru_cache(maxsize=256)
def compile_template(text: str) -> Callable[[Row], str]:
    """Compiles a Jinja template once; the result renders a mapping of names to values.

    Rendering runs in Jinja's sandbox, and raises when the template uses a name that is undefined or a value that is
    null (`{{ x | default('') }}` allows the former).

    Raises:
        DataError: The template is not valid Jinja.
    """
    try:
        return _ENVIRONMENT.from_string(text).render
    except TemplateError as error:
        raise DataError(f"template {text!r} is not valid Jinja: {error}") from None


@lru_cache(maxsize=256)
def _compile_list(text: str) -> Callable[[Row], Any]:
    """Compiles a template that is one expression to a function that gives the expression's value, not its text."""
    inner = text.strip()
    if not (inner.startswith("{{") and inner.endswith("}}")) or inner.count("{{") != 1:
        raise DataError(f"columns.choices is {text!r}: expected a column's name or one {{{{ expression }}}} of a list")
    try:
        expression = _ENVIRONMENT.compile_expression(inner[2:-2].strip(), undefined_to_none=False)
    except TemplateError as error:
        raise DataError(f"columns.choices is {text!r}, which is not valid Jinja: {error}") from None
    return lambda row: expression(**row)


def compile_where(text: str) -> Callable[[str, Row], bool]:
    """Compiles a condition on rows; the result takes where a row comes from and the row. NaN counts as null.

    Raises:
        DataError: The condition is not valid Jinja.
    """
    inner = text.strip().removeprefix("{{").removesuffix("}}")
    try:
        expression = _ENVIRONMENT.compile_expression(inner, undefined_to_none=False)
    except TemplateError as error:
        raise DataError(f"where {text!r} is not valid Jinja: {error}") from None

    def holds(origin: str, row: Row) -> bool:
        try:
            return bool(expression(**{str(key): None if is_missing(value) else value for key, value in row.items()}))
        except Exception as error:  # an expression may fail in any way that its data can
            raise ColumnError(f"{origin}: where {text!r} failed: {error}; {_present(row)}") from None

    return holds


def render_row(columns: Columns, row: Row, *, origin: str = "the row", answer_optional: bool = False) -> Fields:
    """Maps a raw row to the fields of an example.

    Args:
        columns: Which column or template gives which field.
        row: The raw row.
        origin: Where the row comes from, for error messages.
        answer_optional: Allow rows whose answer is null, blank or absent; the answer is None then.

    Returns:
        `prompt` (str, not blank), `answer` (str without surrounding white space, not empty, or None), `id` (str, or
        None when the source gives none), `difficulty` (finite float or None), `choices` (list of str or None).

    Raises:
        DataError: A column is missing, a template fails, or a value cannot be what its field needs.
    """
    prompt = _text(columns.prompt, row, "prompt", origin)
    if prompt is None or not prompt.strip():
        raise DataError(f"{origin}: the prompt (columns.prompt {columns.prompt!r}) is empty")
    answer = _text(columns.answer, row, "answer", origin, absent_ok=answer_optional)
    answer = (answer or "").strip() or None
    if answer is None and not answer_optional:
        raise DataError(
            f"{origin}: the answer (columns.answer {columns.answer!r}) is empty or null, every labelled example needs "
            f"one; correct or drop the row, or build the answer from other columns ({_present(row)}) with a template"
        )
    identity = None
    if columns.id is not None:
        identity = _text(columns.id, row, "id", origin)
        if not identity:
            raise DataError(f"{origin}: the id (columns.id {columns.id!r}) is empty or null; ids must be unique text")
    difficulty = None if columns.difficulty is None else _number(columns.difficulty, row, origin)
    choices = None
    if (wanted := columns.multiple_choice) is not None:
        question = _question(columns, wanted, row, prompt, answer, origin)
        prompt, choices = question.prompt(wanted.style), question.choices(wanted.style)
        answer = None if question.right is None else choices[question.right]
    elif columns.choices is not None:
        choices = _choices(columns.choices, row, answer, origin)
    return {"id": identity, "prompt": prompt, "answer": answer, "difficulty": difficulty, "choices": choices}


def question_key(columns: Columns, row: Row) -> str | None:
    """What two multiple-choice examples must not share besides their prompts: a hash of question and right answer.

    The same question with other wrong options, or with the same ones in another order, is the same example. None where
    the answer is not known, and of what is no multiple-choice question.

    Args:
        columns: Which column or template gives which field.
        row: A row that `render_row` takes.
    """
    if (wanted := columns.multiple_choice) is None:
        return None
    text = _text(columns.prompt, row, "prompt", "the row") or ""
    answer = (_text(columns.answer, row, "answer", "the row", absent_ok=True) or "").strip() or None
    question = _question(columns, wanted, row, text, answer, "the row")
    return None if question.right is None else content_key(f"\0{text}\0{question.options[question.right]}")


def _present(row: Row) -> str:
    return "columns present: " + (", ".join(map(str, row)) or "none")


def _value(spec: str, row: Row, field: str, origin: str, render: Callable[[str], Callable[[Row], Any]]) -> Any:
    """The raw value of a field; None when it is null."""
    if "{{" not in spec:
        if spec not in row:
            raise ColumnError(f"{origin} has no column {spec!r} (columns.{field}); {_present(row)}")
        return None if is_missing(row[spec]) else row[spec]
    try:
        value = render(spec)(row)
        return None if is_missing(value) else value
    except _NullError:
        return None
    except DataError as error:
        raise ColumnError(f"columns.{field}: {error}") from None
    except Exception as error:  # a template may fail in any way that its data and filters can
        raise ColumnError(f"{origin}: template {spec!r} of columns.{field} failed: {error}; {_present(row)}") from None


def answer_text(columns: Columns, row: Row, *, origin: str) -> str | None:
    """The answer of a row, null if it has none.

    Raises:
        DataError: The column is missing, or the template fails.
    """
    return _text(columns.answer, row, "answer", origin)


def _text(spec: str, row: Row, field: str, origin: str, absent_ok: bool = False) -> str | None:
    if absent_ok and "{{" not in spec and spec not in row:
        return None
    value = _value(spec, row, field, origin, compile_template)
    return None if value is None else scalar_text(value, spec, f"{origin}: column {spec!r} (columns.{field})")


def scalar_text(value: object, column: str, where: str) -> str:
    """The text of a value, well-formed Unicode.

    Text stays as it is. Integers are written as integers, numbers from CSV and JSON as they are spelt there, and other
    decimals without a fraction as integers.

    Args:
        value: Anything but null and NaN.
        column: Name of its column, for advice.
        where: What to call it in an error.

    Raises:
        DataError: An infinity, or a value that is no text and no number; says what a template can make of it.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            broken = f"U+{ord(value[error.start]):04X} at character {error.start + 1}"
            raise DataError(f"{where} is no valid text: {broken} is half of a pair (a surrogate)") from None
        return value
    advice = _ADVICE.get(next((kind for kind in _ADVICE if isinstance(value, kind)), object))
    if advice is not None:
        name, template = advice
        called = column if column.isidentifier() else "column"
        said = f'"{{{{ {template.format(called)} }}}}"'
        raise DataError(f"{where} holds {name}, expected text; make text of it with a template such as {said}")
    if isinstance(value, (float, Decimal)) and not math.isfinite(value):
        raise DataError(f"{where} is {value}, expected text or a finite number")
    if type(value) is float and value.is_integer():  # not one that says how it is spelt
        _say_once(column, value)
        return str(int(value))
    if isinstance(value, (int, float, Decimal)):
        return str(value)
    raise DataError(f"{where} holds a {type(value).__name__}, expected text")


_ADVICE: dict[type, tuple[str, str]] = {
    bool: ("a boolean", "'yes' if {} else 'no'"),
    list: ("a list", "{} | join(' ')"),
    tuple: ("a list", "{} | join(' ')"),
    set: ("a set", "{} | sort | join(' ')"),
    dict: ("a dictionary", "{}['key']"),
    bytes: ("bytes", "{}.decode()"),
    datetime.datetime: ("a time stamp", "{}.isoformat()"),
    datetime.date: ("a date", "{}.isoformat()"),
    datetime.time: ("a time of day", "{}.isoformat()"),
    datetime.timedelta: ("a duration", "{}.total_seconds()"),
}
"""What is not text, and the template that makes text of it."""


_SAID: set[str] = set()


def _say_once(column: str, value: float) -> None:
    if column not in _SAID:
        _SAID.add(column)
        logger.warning("column %s: decimals without a fraction become integers: %s is written %d", column, value, value)


def _number(spec: str, row: Row, origin: str) -> float | None:
    value = _value(spec, row, "difficulty", origin, compile_template)
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(
            f"{origin}: the difficulty (columns.difficulty {spec!r}) is {value!r}, expected a finite number"
        )
    return number


def _is_option(value: object) -> bool:
    return isinstance(value, (str, int, float)) and not is_missing(value)


def _choices(spec: str, row: Row, answer: str | None, origin: str) -> list[str] | None:
    value = _value(spec, row, "choices", origin, _compile_list)
    if value is None:
        return None
    choices = _texts(_decoded(value), spec, "choice", origin)
    if answer is not None and answer not in choices:
        raise DataError(f"{origin}: the answer {answer!r} is none of its choices {choices}; both must be the same text")
    return choices


def _decoded(value: object) -> object:
    """The value, read as JSON where it is text that looks like it: CSV cells can hold a list in no other way."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        with contextlib.suppress(ValueError):
            return JSON.decode(value)
    return value


def _texts(value: object, spec: str, what: str, origin: str) -> list[str]:
    """A list of options or labels as texts."""
    if not isinstance(value, (list, tuple)) or not value or not all(map(_is_option, value)):
        raise DataError(
            f"{origin}: the {what}s (columns.{_KEYS[what]} {spec!r}) are {value!r}, expected a list of texts"
        )
    where = f"{origin}: a {what} (columns.{_KEYS[what]} {spec!r})"
    return [scalar_text(one, spec, where).strip() for one in value]


_KEYS = {"choice": "choices", "label": "multiple_choice.labels"}
"""Settings of columns by what their lists hold."""


def _question(
    columns: Columns, wanted: MultipleChoice, row: Row, text: str, answer: str | None, origin: str
) -> Question:
    """The multiple-choice question of a row, from its question and the key of the right option."""
    assert columns.choices is not None, "the config's check"
    value, given = parted(_decoded(_value(columns.choices, row, "choices", origin, _compile_list)))
    options = _texts(value, columns.choices, "choice", origin)
    if wanted.labels is not None:
        given = _decoded(_value(wanted.labels, row, "multiple_choice.labels", origin, _compile_list))
    labels = None if given is None else _texts(given, wanted.labels or columns.choices, "label", origin)
    try:
        return make_question(text.strip(), options, labels, answer, wanted)
    except DataError as error:
        raise DataError(f"{origin}: {error}") from None
