import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ensemw2s.config import Columns, FilesSource, HuggingFaceSource
from ensemw2s.errors import DataError
from ensemw2s.labeling.intake import check_input, identity, write_examples


def lines(path: Path, *rows: object) -> FilesSource:
    """A jsonl file; rows that are text are written as they are."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return FilesSource(paths=[str(path)])


def written(source, tmp_path: Path, **options) -> tuple[list[dict], list[dict]]:
    refused = tmp_path / "out" / "rejected.parquet"
    total = write_examples(source, tmp_path / "out" / "rows.parquet", group=2, rejected=refused, **options)
    rows = pq.read_table(tmp_path / "out" / "rows.parquet").to_pylist()
    assert len(rows) == total
    assert [p.name for p in (tmp_path / "out").iterdir() if p.name.startswith(".")] == []
    return rows, pq.read_table(refused).to_pylist() if refused.exists() else []


def test_every_row_becomes_an_example_and_equal_prompts_get_ids_of_their_own(tmp_path):
    source = lines(tmp_path / "a.jsonl", *[{"prompt": text} for text in ("x", "y", "x", "x", "z")])
    rows, refused = written(source, tmp_path)
    assert [row["prompt"] for row in rows] == ["x", "y", "x", "x", "z"]
    first = rows[0]["id"]
    assert [row["id"] for row in rows][2:4] == [f"{first}-2", f"{first}-3"]
    assert len({row["id"] for row in rows}) == 5
    assert refused == []


def test_rows_that_cannot_be_used_are_put_aside_with_the_reason(tmp_path):
    source = lines(
        tmp_path / "a.jsonl",
        {"prompt": "x", "key": "1"}, "{half a row", {"prompt": None, "key": "2"}, {"key": "3"}, ["no object"],
        {"prompt": "y", "key": "1"}, {"prompt": "z", "key": "4"},
    )  # fmt: skip
    source = source.model_copy(update={"columns": Columns(id="key")})
    rows, refused = written(source, tmp_path)
    assert [(row["id"], row["prompt"]) for row in rows] == [("1", "x"), ("4", "z")]
    reasons = [row["reason"] for row in refused]
    for reason, expected in zip(
        reasons,
        ("line 2 is not JSON", "row 3", "row 4 has no column 'prompt'", "row 5 is a list", "the id 1 occurs twice"),
        strict=True,
    ):
        assert expected in reason


def test_cells_that_are_missing_from_a_csv_row_reject_that_row(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,more\nx,1\ny\nz,3\n")
    rows, refused = written(FilesSource(paths=[str(tmp_path / "a.csv")]), tmp_path)
    assert [row["prompt"] for row in rows] == ["x", "z"]
    assert "row 2 (line 3) does not have 2 cells" in refused[0]["reason"]


def test_where_rows_must_be_right_the_first_wrong_one_is_raised_and_nothing_is_left(tmp_path):
    source = lines(tmp_path / "a.jsonl", {"prompt": "x", "answer": "1"}, "{half")
    with pytest.raises(DataError, match="line 2 is not JSON"):
        write_examples(source, tmp_path / "out" / "rows.parquet", group=2)
    assert list((tmp_path / "out").iterdir()) == []


def test_rejected_rows_alone_are_rows_too(tmp_path):
    rows, refused = written(lines(tmp_path / "a.jsonl", {"prompt": None}), tmp_path)
    assert (len(rows), len(refused)) == (0, 1)


def test_a_data_set_that_was_saved_is_input_as_well(tmp_path):
    import datasets

    datasets.Dataset.from_dict({"question": ["x", "y"]}).save_to_disk(str(tmp_path / "saved"))
    source = HuggingFaceSource(path=str(tmp_path / "saved"), columns=Columns(prompt="question"))
    check_input(source, labelled=False)
    assert [row["prompt"] for row in written(source, tmp_path)[0]] == ["x", "y"]
    before = identity(source)
    datasets.Dataset.from_dict({"question": ["x", "z"]}).save_to_disk(str(tmp_path / "saved"))
    assert identity(source) != before


@pytest.mark.parametrize(
    ("rows", "labelled", "reason"),
    [
        ([{"question": "x"}], False, "has no column 'prompt'"),
        ([], False, "there are no rows in"),
        ([{"prompt": None, "answer": "1"}], True, "row 1"),
        ([{"prompt": None}], False, None),
    ],
)
def test_the_first_row_shows_what_is_wrong_with_all(tmp_path, rows, labelled, reason):
    source = lines(tmp_path / "a.jsonl", *rows)
    if reason is None:
        check_input(source, labelled=labelled)
        return
    with pytest.raises(DataError, match=reason):
        check_input(source, labelled=labelled)


def test_a_broken_first_row_does_not_stop_the_others(tmp_path):
    (tmp_path / "a.csv").write_text('prompt,more\n"He said "hi"",1\ny,2\n')
    source = FilesSource(paths=[str(tmp_path / "a.csv")])
    check_input(source, labelled=False)
    rows, [refused] = written(source, tmp_path)
    assert [row["prompt"] for row in rows] == ["y"]
    assert "row 1 (line 2) is not CSV" in refused["reason"]
    with pytest.raises(DataError, match=r"row 1 \(line 2\) is not CSV"):
        check_input(source, labelled=True)


def test_half_a_surrogate_pair_puts_the_row_aside(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b \\ud83d"}\n{"prompt": "c"}\n')
    rows, [refused] = written(FilesSource(paths=[str(tmp_path / "a.jsonl")]), tmp_path)
    assert [row["prompt"] for row in rows] == ["a", "c"]
    assert "a.jsonl row 2: column 'prompt' (columns.prompt) is no valid text: U+D83D" in refused["reason"]
