"""Multiple-choice questions as data sets write them: one question in many shapes makes one example."""

import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ensemw2s.config import Columns, FilesSource
from ensemw2s.data.columns import render_row
from ensemw2s.data.dropped import Tally
from ensemw2s.data.sources import read_source
from ensemw2s.errors import DataError

TEXTS = ["rock", "bird", "cloud", "river"]
HUB = {"question": "What flies?", "choices": {"text": TEXTS, "label": ["A", "B", "C", "D"]}, "answerKey": "B"}
SCIQ = "{{ [correct_answer, distractor1, distractor2, distractor3] }}"


def columns(style: str = "text", **fields) -> Columns:
    wanted = {"style": style} | {key: fields.pop(key) for key in ("labels", "shuffle_seed") if key in fields}
    given = {"prompt": "question", "answer": "answerKey", "choices": "choices", "multiple_choice": wanted}
    return Columns(**(given | fields))


def sciq(question: str, answer: str, *wrong: str) -> dict:
    return {"question": question, "correct_answer": answer} | {f"distractor{n}": w for n, w in enumerate(wrong, 1)}


def read(tmp_path, rows: list[dict], spec: Columns, tally: Tally | None = None, **source) -> pa.Table:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = FilesSource(paths=[str(path)], columns=spec, **source)
    return read_source(given, seed=0, n_easy=0, n_hard=0, tally=tally)


@pytest.mark.parametrize(
    ("row", "fields"),
    [
        (HUB, {}),
        (HUB | {"choices": [{"text": t, "label": k} for t, k in zip(TEXTS, "ABCD", strict=True)]}, {}),
        (HUB | {"choices": {"text": TEXTS, "label": list("1234")}, "answerKey": "2"}, {}),
        (HUB | {"choices": TEXTS}, {}),
        (HUB | {"choices": TEXTS, "answerKey": 2}, {}),
        (HUB | {"choices": TEXTS, "answerKey": "bird"}, {}),
        (HUB | {"choices": json.dumps(TEXTS)}, {}),
        (HUB | {"choices": json.dumps(HUB["choices"])}, {}),
        (HUB | {"choices": TEXTS, "labels": ["1", "2", "3", "4"], "answerKey": "2"}, {"labels": "labels"}),
        (HUB | {"choices": TEXTS, "answerKey": 1}, {"labels": "{{ range(4) | list }}"}),
        (sciq("What flies?", "bird", "rock", "cloud", "river"), {"choices": SCIQ, "answer": "correct_answer"}),
    ],
)
def test_every_shape_of_a_question_gives_the_same_example(row, fields):
    made = render_row(columns(**fields), row)
    assert made == render_row(columns(), HUB)
    assert made["answer"] == "bird"
    assert sorted(made["choices"]) == sorted(TEXTS)


def test_the_three_styles_of_a_prompt():
    def made(style: str) -> tuple:
        row = render_row(columns(style, shuffle_seed=None), HUB)
        return row["prompt"], row["answer"], row["choices"]

    assert made("text") == ("What flies?\n- rock\n- bird\n- cloud\n- river", "bird", TEXTS)
    assert made("letter") == ("What flies?\nA. rock\nB. bird\nC. cloud\nD. river", "B", ["A", "B", "C", "D"])
    assert made("likelihood") == ("What flies?", "bird", TEXTS)


def test_no_place_is_right_more_often_than_another():
    rows = [sciq(f"What is {n}?", "right", "one", "two", "three") for n in range(800)]
    spec = columns("letter", choices=SCIQ, answer="correct_answer")
    places = Counter(render_row(spec, row)["answer"] for row in rows)
    assert places.keys() == set("ABCD")
    assert all(150 < n < 250 for n in places.values()), "each of four is expected 200 times, give or take 12"
    other = columns("letter", choices=SCIQ, answer="correct_answer", shuffle_seed=1)
    assert [render_row(spec, row) for row in rows] != [render_row(other, row) for row in rows]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answerKey": "E"}, r"row 7: the answer 'E' is none of the labels \['A', 'B', 'C', 'D'\]"),
        ({"choices": TEXTS, "answerKey": "5"}, "the answer '5' is none of the options"),
        ({"choices": ["rock", "bird", "bird"]}, "the option 'bird' occurs twice; .* by the source's where"),
        ({"choices": ["rock"]}, "needs 2 to 26 options, this one has 1"),
        ({"choices": {"text": TEXTS, "label": ["A", "A", "B", "C"]}}, "each needs one of its own"),
        ({"choices": {"label": ["A", "B"]}}, "expected a list of texts"),
        ({"choices": None}, "expected a list of texts"),
    ],
)
def test_a_faulty_row_is_refused_with_the_reason(change, message):
    with pytest.raises(DataError, match=message):
        render_row(columns(), HUB | change, origin="row 7")


def test_options_that_differ_in_case_are_different_ones():
    assert render_row(columns(), HUB | {"choices": ["Mass", "mass"], "answerKey": "mass"})["answer"] == "mass"


def test_a_hard_question_needs_no_answer():
    made = render_row(columns(), HUB | {"answerKey": None}, answer_optional=True)
    assert (made["answer"], sorted(made["choices"])) == (None, sorted(TEXTS))


def test_multiple_choice_needs_the_column_of_its_options():
    with pytest.raises(ValueError, match="multiple_choice needs choices"):
        Columns(multiple_choice={})


@pytest.mark.parametrize("style", ["text", "letter"])
def test_the_same_question_and_answer_with_other_wrong_options_is_a_repetition(tmp_path, style):
    rows = [
        sciq("What flies?", "bird", "rock", "cloud", "river"),
        sciq("What flies?", "bird", "stone", "snow", "pond"),
        sciq("What flies?", "kite", "rock", "cloud", "river"),
    ]
    tally = Tally()
    made = read(tmp_path, rows, columns(style, choices=SCIQ, answer="correct_answer"), tally)
    assert made.num_rows == 2, "another right answer makes another question"
    assert (tally.record().repeated, tally.record().conflicting) == (1, 0)


def test_faulty_rows_are_dropped_and_counted_by_the_condition_on_rows(tmp_path):
    rows = [sciq("What flies?", "bird", "rock", "cloud", "bird"), sciq("What swims?", "fish", "rock", "cloud", "bird")]
    tally = Tally()
    where = f"({SCIQ[2:-2].strip()} | unique(case_sensitive=true) | list | length) == 4"
    made = read(tmp_path, rows, columns(choices=SCIQ, answer="correct_answer"), tally, where=where)
    assert made["answer"].to_pylist() == ["fish"]
    assert tally.record().unmatched == 1


def test_options_of_parquet_files_are_read(tmp_path):
    pq.write_table(pa.Table.from_pylist([HUB]), tmp_path / "a.parquet")
    given = FilesSource(paths=[str(tmp_path / "a.parquet")], columns=columns())
    assert read_source(given, seed=0, n_easy=0, n_hard=0)["answer"].to_pylist() == ["bird"]
