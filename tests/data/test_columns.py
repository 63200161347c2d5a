import datetime
import math
from decimal import Decimal

import pytest

from ensemw2s.config import Columns
from ensemw2s.data.columns import compile_template, render_row
from ensemw2s.errors import DataError


def columns(**fields):
    return Columns(**({"prompt": "q", "answer": "a"} | fields))


def test_columns_map_by_name():
    made = render_row(columns(id="n", difficulty="d"), {"q": "1+1", "a": 2, "n": 7, "d": "1.5"})
    assert made == {"id": "7", "prompt": "1+1", "answer": "2", "difficulty": 1.5, "choices": None}


def test_columns_map_by_template_over_nested_fields():
    spec = columns(prompt="sort {{ m.numbers | map('float') | map('int') | join(' ') }} =", answer="{{ m.up }}!")
    made = render_row(spec, {"m": {"numbers": ["14.0", "6.0"], "up": "6 14"}})
    assert (made["prompt"], made["answer"]) == ("sort 14 6 =", "6 14!")


def test_answers_lose_surrounding_white_space_and_prompts_keep_it():
    made = render_row(columns(), {"q": " x\n", "a": " y\n"})
    assert (made["prompt"], made["answer"]) == (" x\n", "y")


def test_a_missing_column_is_named_with_the_columns_that_are_there():
    with pytest.raises(
        DataError, match=r"a\.csv row 3 has no column 'a' \(columns.answer\); columns present: q, label"
    ):
        render_row(columns(), {"q": "1", "label": "2"}, origin="a.csv row 3")


def test_a_template_over_an_absent_field_is_an_error_and_not_an_empty_text():
    with pytest.raises(DataError, match=r"template .* of columns.prompt failed: 'x' is undefined; columns present: a"):
        render_row(columns(prompt="{{ x }}"), {"a": "1"})


def test_a_null_in_a_template_never_becomes_the_word_none():
    with pytest.raises(DataError, match=r"the answer .* is empty or null"):
        render_row(columns(answer="= {{ a }}"), {"q": "1", "a": None})


@pytest.mark.parametrize("answer", [None, "", "  \n"])
def test_an_empty_answer_is_an_error_that_names_the_row(answer):
    with pytest.raises(DataError, match=r"rows.jsonl row 9: the answer \(columns.answer 'a'\) is empty or null"):
        render_row(columns(), {"q": "1", "a": answer}, origin="rows.jsonl row 9")


@pytest.mark.parametrize("row", [{"q": "1", "a": None}, {"q": "1", "a": " "}, {"q": "1"}])
def test_an_answer_may_be_left_out_where_that_is_allowed(row):
    assert render_row(columns(), row, answer_optional=True)["answer"] is None


@pytest.mark.parametrize("prompt", [None, " "])
def test_an_empty_prompt_is_an_error(prompt):
    with pytest.raises(DataError, match=r"the prompt .* is empty"):
        render_row(columns(), {"q": prompt, "a": "1"})


def test_a_list_where_text_is_needed_asks_for_a_template():
    with pytest.raises(DataError, match=r"holds a list, expected text; .*\"\{\{ q \| join"):
        render_row(columns(), {"q": [1, 2], "a": "1"})


@pytest.mark.parametrize("value", ["hard", "nan", "", [1]])
def test_a_difficulty_must_be_a_finite_number(value):
    with pytest.raises(DataError, match=r"the difficulty .* expected a finite number"):
        render_row(columns(difficulty="d"), {"q": "1", "a": "1", "d": value})


@pytest.mark.parametrize("given", [["4", "5"], [4, 5], '["4", "5"]'])
def test_choices_come_from_a_list_or_from_json_in_a_cell(given):
    assert render_row(columns(choices="c"), {"q": "2+2", "a": "4", "c": given})["choices"] == ["4", "5"]


def test_choices_come_from_an_expression_over_nested_fields():
    spec = columns(choices="{{ c.text }}", answer="{{ c.text[c.label.index(key)] }}")
    made = render_row(spec, {"q": "2+2", "key": "B", "c": {"text": ["3", "4"], "label": ["A", "B"]}})
    assert (made["answer"], made["choices"]) == ("4", ["3", "4"])


def test_an_answer_that_is_no_choice_is_an_error():
    with pytest.raises(DataError, match=r"the answer 'B' is none of its choices \['3', '4'\]"):
        render_row(columns(choices="c"), {"q": "2+2", "a": "B", "c": ["3", "4"]})


@pytest.mark.parametrize("value", [[], "a, b", {"text": ["a"]}, [["a"]]])
def test_choices_must_be_a_list_of_texts(value):
    with pytest.raises(DataError, match="expected a list of texts"):
        render_row(columns(choices="c"), {"q": "1", "a": "a", "c": value})


def test_invalid_jinja_is_reported_with_its_field():
    with pytest.raises(DataError, match=r"columns.prompt: template '\{\{ q' is not valid Jinja"):
        render_row(columns(prompt="{{ q"), {"q": "1", "a": "1"})


def test_templates_cannot_reach_python():
    with pytest.raises(DataError, match="unsafe"):
        render_row(columns(prompt="{{ q.__class__.__mro__ }}"), {"q": "1", "a": "1"})
    with pytest.raises(DataError, match="unsafe"):
        render_row(columns(choices="{{ q.__class__.__mro__ }}"), {"q": "1", "a": "1"})


def test_templates_are_compiled_once():
    assert compile_template("{{ x }} {{ y }}") is compile_template("{{ x }} {{ y }}")


@pytest.mark.parametrize("missing", [None, math.nan, Decimal("nan")])
def test_nan_is_a_missing_value_like_null(missing):
    columns = Columns(prompt="q", answer="a")
    with pytest.raises(DataError, match=r"the prompt .* is empty"):
        render_row(columns, {"q": missing, "a": "1"})
    assert render_row(columns, {"q": "x", "a": missing}, answer_optional=True)["answer"] is None
    with pytest.raises(DataError, match=r"the answer .* is empty or null"):
        render_row(Columns(prompt="q", answer="{{ a }}"), {"q": "x", "a": missing})
    with pytest.raises(DataError, match="expected a list of texts"):
        render_row(Columns(prompt="q", answer="a", choices="c"), {"q": "x", "a": "1", "c": ["1", math.nan]})


@pytest.mark.parametrize(("value", "text"), [(17, "17"), (17.0, "17"), (-0.5, "-0.5"), (Decimal("1.50"), "1.50")])
def test_numbers_become_text(value, text):
    assert render_row(Columns(prompt="q", answer="a"), {"q": "x", "a": value})["answer"] == text


def test_that_decimals_are_written_as_integers_is_said_once(caplog):
    for value in (17.0, 18.0):
        render_row(Columns(prompt="q", answer="said_once"), {"q": "x", "said_once": value})
    assert [record.message for record in caplog.records] == [
        "column said_once: decimals without a fraction become integers: 17.0 is written 17"
    ]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.inf, "is inf, expected text or a finite number"),
        (True, r"holds a boolean, .* \"\{\{ 'yes' if a else 'no' \}\}\""),
        (datetime.date(2026, 1, 2), r"holds a date, .* \"\{\{ a.isoformat\(\) \}\}\""),
        (datetime.datetime(2026, 1, 2), r"holds a time stamp"),
        ({"key": 1}, r"holds a dictionary, .* \"\{\{ a\['key'\] \}\}\""),
        (b"x", r"holds bytes, .* \"\{\{ a.decode\(\) \}\}\""),
        ("half \ud83d", r"is no valid text: U\+D83D at character 6 is half of a pair"),
    ],
)
def test_what_is_no_text_is_refused_with_advice_that_fits(value, message):
    with pytest.raises(DataError, match=message):
        render_row(Columns(prompt="q", answer="a"), {"q": "x", "a": value}, origin="a.parquet row 3")


@pytest.mark.parametrize("value", [True, datetime.date(2026, 1, 2), {"key": 1}, b"x", ["1"], {"b", "a"}])
def test_the_advice_works(value):
    columns = Columns(prompt="q", answer="a")
    with pytest.raises(DataError) as error:
        render_row(columns, {"q": "x", "a": value})
    template = str(error.value).rsplit('"', 2)[1]
    assert render_row(Columns(prompt="q", answer=template), {"q": "x", "a": value})["answer"]
