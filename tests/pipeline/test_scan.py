"""All rows are read before anything starts: by number, with every tokenizer that is there, against every context."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from ensemw2s.config import Config, parse_config
from ensemw2s.errors import DataError
from ensemw2s.models import loading, tiny
from ensemw2s.pipeline import scan
from ensemw2s.pipeline.foundations import Foundations
from ensemw2s.pipeline.scan import Scan, check_rows, check_trained, remember
from ensemw2s.storage import store

SIZES = {"easy_train": 8, "easy_validation": 3, "id_test": 3, "hard_unlabelled": 6, "ood_test": 3}
TEXT = "0 1 2 3 4 5 6 7 8 9 + ="


@pytest.fixture(autouse=True)
def nothing_scanned(monkeypatch):
    monkeypatch.setattr(scan, "_scanned", {})


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """A model of 512 positions; one of 16; one whose tokenizer takes a number for many tokens."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = tiny.train_tokenizer([TEXT] * 9, 64)
    short = GPT2Config(vocab_size=len(tokenizer), n_positions=16, n_layer=1, n_embd=8, n_head=1)
    wordy = tiny.train_tokenizer(["quite other words"] * 9, 64, also=TEXT)
    for name, model, reads in (
        ("one", tiny.create_tiny("tiny-weak", tokenizer, 0), tokenizer),
        ("short", GPT2LMHeadModel(short), tokenizer),
        ("wordy", tiny.create_tiny("tiny-weak", wordy, 0), wordy),
    ):
        loading.save_trained(model, reads, root / name)
    return {name: str(root / name) for name in ("one", "short", "wordy")}


def rows() -> list[dict[str, Any]]:
    return [{"id": str(i), "prompt": f"{i} + 1 =", "answer": str(i + 1), "level": i % 2} for i in range(40)]


def config(
    folder: Path, given: list[dict[str, Any]], weak: str = "tiny-weak", strong: str = "tiny-strong", **data: Any
) -> Config:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in given))
    columns = {"prompt": "prompt", "answer": "answer", "difficulty": "level", "id": "id"}
    section = {
        "source": {"kind": "files", "paths": [str(file)], "columns": columns},
        "split": {"mode": "difficulty", "difficulty_from": "column", "easy_max": 0},
        "sizes": SIZES,
    }
    return parse_config(
        {
            "name": "study",
            "storage": str(folder / "runs"),
            "data": section | data,
            "models": {"weak": [{"base": weak}], "strong": {"base": strong}},
        }
    )


def test_good_rows_pass_and_a_scan_leaves_nothing_behind(tmp_path, models):
    given = config(tmp_path, rows(), models["one"])
    assert check_rows(given) == Scan(rows=40, whole=True)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_files_that_passed_are_not_read_again_until_they_or_the_models_change(tmp_path, models, monkeypatch):
    check_rows(given := config(tmp_path, rows(), models["one"]))
    remember(given)
    monkeypatch.setattr(scan, "_scanned", {})  # another process
    monkeypatch.setattr(scan, "make_splits", lambda *_, **__: pytest.fail("read again"))
    assert check_rows(given).rows == 40
    with pytest.raises(pytest.fail.Exception):
        check_rows(config(tmp_path, rows(), models["one"], models["wordy"]))
    with pytest.raises(pytest.fail.Exception):
        check_rows(config(tmp_path, rows()[:-1], models["one"]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": "3"}, r"id 3 belongs to two examples, '3 \+ 1 =' .*row 4\) and '30 \+ 1 =' .*row 31\)"),
        ({"level": None}, "rows.jsonl row 31: the difficulty .* is null"),
        ({"level": 0, "answer": None}, r"rows.jsonl row 31: '30 \+ 1 =' is easy .* and has no answer"),
        ({"prompt": "30 \ud83d ="}, "rows.jsonl row 31"),
    ],
    ids=["an id that comes twice", "no difficulty", "an easy row without an answer", "half of a surrogate pair"],
)
def test_a_row_far_down_that_cannot_be_used_is_named(tmp_path, change, said):
    given = rows()
    given[30] |= change
    with pytest.raises(DataError, match=said):
        check_rows(config(tmp_path, given))


@pytest.mark.parametrize("broken", [b'{"prompt": "\xff"}', b"[" * 9000, b'{"level": ' + b"1" * 5000 + b"}", b"{"])
def test_a_line_that_is_no_row_is_named(tmp_path, broken):
    given = config(tmp_path, rows())
    file = tmp_path / "rows.jsonl"
    file.write_bytes(file.read_bytes() + broken + b"\n")
    with pytest.raises(DataError, match="line 41"):
        check_rows(given)


def test_too_few_rows_for_a_split(tmp_path):
    with pytest.raises(DataError, match=r"distinct easy examples, 14 are wanted"):
        check_rows(config(tmp_path, rows()[:20]))


@pytest.mark.parametrize("number", [30, 31], ids=["easy", "hard"])
def test_an_answer_that_no_model_can_take_is_named(tmp_path, models, number):
    given = rows()
    given[number]["answer"] = "1 " * 600
    with pytest.raises(DataError, match=rf"row {number + 1}: the answer has \d+ tokens of .*one, data.max_answer"):
        check_rows(config(tmp_path, given, models["one"]))
    with pytest.raises(DataError, match=rf"row {number + 1}: prompt and answer have \d+ tokens, .*one takes 512"):
        check_rows(config(tmp_path, given, models["one"], max_answer_tokens=5000))


def test_the_model_with_the_shortest_context_decides(tmp_path, models):
    given = rows()
    given[9]["prompt"] = " ".join("123456789" * 3)
    with pytest.raises(DataError, match=r"row 10: prompt and answer have \d+ tokens, .*short takes 16"):
        check_rows(config(tmp_path, given, models["one"], models["short"]))


def test_the_strong_tokenizer_counts_too(tmp_path, models):
    limit = 6
    check_rows(config(tmp_path, rows(), models["one"], models["one"], max_prompt_tokens=limit))
    with pytest.raises(DataError, match=r"the prompt has \d+ tokens of .*wordy, data.max_prompt_tokens allows 6"):
        check_rows(config(tmp_path, rows(), models["one"], models["wordy"], max_prompt_tokens=limit))


def test_easy_answers_that_labels_cannot_be_as_long_as(tmp_path, models):
    given = config(tmp_path, rows(), models["one"])
    short = given.model_copy(update={"labeling": given.labeling.model_copy(update={"max_new_tokens": 1})})
    with pytest.raises(DataError, match=r"rows.jsonl row \d+: the answer .* raise labeling.max_new_tokens to"):
        check_rows(short)


def test_splits_that_are_made_are_measured_in_place_of_the_rows(tmp_path, models):
    given = config(tmp_path, rows(), models["one"])
    made = Foundations(given, None)
    with store.publish(made.data.path, made.data.description) as folder:
        for name, table in scan.make_splits(given.data, seed=0).tables().items():
            pq.write_table(table, folder / f"{name}.parquet")
        pq.write_table(scan.make_splits(given.data, seed=0).hard_labels, folder / "hard_labels.parquet")
    assert check_rows(given) == Scan(rows=23, whole=True)
    brief = given.model_copy(update={"labeling": given.labeling.model_copy(update={"max_new_tokens": 1})})
    with pytest.raises(DataError, match=r"rows.jsonl row \d+: the answer .* raise labeling.max_new_tokens to"):
        check_rows(brief)
    with store.publish(made.tokens.path, made.tokens.description):
        pass
    assert check_rows(brief).whole, "this run got past the check when it was made"


def test_of_many_rows_the_first_are_read_and_the_scan_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "ROWS", 25)
    given = rows()
    given[30]["prompt"] = ""
    found = check_rows(config(tmp_path, given))
    assert found == Scan(rows=25, whole=False)
    assert found.words() == "the first 25 rows can be used; the others are checked when the run reads them"


def test_of_generated_rows_a_few_are_made(tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "GENERATED", 3)
    source = {"kind": "reasoning_gym", "dataset": "basic_arithmetic", "easy": {"max_digits": 1}, "hard": {}}
    data = {"source": source, "split": {"mode": "difficulty", "difficulty_from": "source"}}
    assert check_rows(config(tmp_path, [], **data)) == Scan(rows=6, whole=False)


def test_rows_that_a_reference_model_rates_are_counted(tmp_path):
    split = {"mode": "difficulty", "difficulty_from": "reference_loss"}
    assert check_rows(config(tmp_path, rows(), split=split)).whole
    with pytest.raises(DataError, match="14 are wanted"):
        check_rows(config(tmp_path, rows()[:16], split=split))


def test_with_a_tokenizer_that_is_trained_the_pass_comes_after_it(tmp_path, monkeypatch):
    planned = config(tmp_path, rows())
    tables = scan.make_splits(planned.data, seed=0).tables()
    longest = tables["ood_test"]["id"][1].as_py()
    given = [row | ({"answer": "1 " * 600} if row["id"] == longest else {}) for row in rows()]
    assert check_rows(config(tmp_path, given)).whole  # nobody knows how many tokens these will be
    tables = scan.make_splits(planned.data, seed=0).tables()
    monkeypatch.setattr(scan, "_tables", lambda *_: tables)
    tokenizer = tiny.train_tokenizer([TEXT] * 9, 64)
    with pytest.raises(DataError, match=rf"ood_test, .*rows.jsonl row {int(longest) + 1}: the answer of .* has"):
        check_trained(planned, tokenizer, tmp_path)
