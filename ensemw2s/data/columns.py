"""From a source's raw row to an example: column names and Jinja templates over the row.

Raw rows come in, the fields of examples go out. It is a module of its own because the corpus of the tiny models builds
documents with the same templates.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from ensemw2s.config import Columns
from ensemw2s.data.rows import Fields, Row
from ensemw2s.errors import DataError


class ColumnError(DataError):
    """A row does not have a column that is asked for, or a template fails on it: most likely so in every row."""


class _NullError(Exception):
    """A template used a null value, which would silently print as the word None."""


def _refuse_null(value: Any) -> Any:
    if value is None:
        raise _NullError("a value that it uses is null")
    return value


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
    return {
        "id": identity,
        "prompt": prompt,
        "answer": answer,
        "difficulty": None if columns.difficulty is None else _number(columns.difficulty, row, origin),
        "choices": None if columns.choices is None else _choices(columns.choices, row, answer, origin),
    }


def _present(row: Row) -> str:
    return "columns present: " + (", ".join(map(str, row)) or "none")


def _value(spec: str, row: Row, field: str, origin: str, render: Callable[[str], Callable[[Row], Any]]) -> Any:
    """The raw value of a field; None when it is null."""
    if "{{" not in spec:
        if spec not in row:
            raise ColumnError(f"{origin} has no column {spec!r} (columns.{field}); {_present(row)}")
        return row[spec]
    try:
        return render(spec)(row)
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
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (list, tuple, dict, set, bytes)):
        raise DataError(
            f"{origin}: column {spec!r} (columns.{field}) holds a {type(value).__name__}, expected text; "
            f"make text of it with a template such as \"{{{{ {spec} | join(' ') }}}}\""
        )
    return str(value)


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


def _choices(spec: str, row: Row, answer: str | None, origin: str) -> list[str] | None:
    value = _value(spec, row, "choices", origin, _compile_list)
    if value is None:
        return None
    if isinstance(value, str) and value.lstrip().startswith("["):  # CSV cells can hold a list as JSON only
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(v, (str, int, float)) for v in value):
        raise DataError(f"{origin}: the choices (columns.choices {spec!r}) are {value!r}, expected a list of texts")
    choices = [str(v).strip() for v in value]
    if answer is not None and answer not in choices:
        raise DataError(f"{origin}: the answer {answer!r} is none of its choices {choices}; both must be the same text")
    return choices
