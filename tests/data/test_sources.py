import itertools
import json
from importlib.metadata import version

import pytest

from ensemw2s.config import Columns, DataConfig, FilesSource, ReasoningGymSource
from ensemw2s.data.dropped import Tally
from ensemw2s.data.examples import EXAMPLE_SCHEMA, content_key, example_id
from ensemw2s.data.sources import check_source, iterate_rows, read_source, sources_identity
from ensemw2s.errors import DataError

SMALL = {"min_numbers": 2, "max_numbers": 2, "min_decimals": 0, "max_decimals": 0, "min_value": 0, "max_value": 3}
"""Settings with 4 × 4 numbers × 2 directions = 32 distinct prompts."""


def files(tmp_path, rows, name="a.jsonl", **columns):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return FilesSource(paths=[str(path)], columns=Columns(**columns))


def read(source, n_easy=0, n_hard=0, **kwargs):
    return read_source(source, seed=0, n_easy=n_easy, n_hard=n_hard, **kwargs)


def test_files_become_examples_with_content_ids(tmp_path):
    table = read(files(tmp_path, [{"prompt": "1+1", "answer": 2}, {"prompt": "2+2", "answer": 4}]))
    assert table.schema == EXAMPLE_SCHEMA
    assert table["answer"].to_pylist() == ["2", "4"]
    assert table["id"].to_pylist() == [example_id(p) for p in ("1+1", "2+2")]
    assert table["difficulty"].to_pylist() == [0, 0]


def test_of_equal_prompts_the_first_is_kept_even_when_answers_conflict(tmp_path):
    rows = [
        {"prompt": "is  it?", "answer": "yes"},
        {"prompt": "is it?", "answer": "no"},
        {"prompt": "b", "answer": "c"},
    ]
    assert read(files(tmp_path, rows))["answer"].to_pylist() == ["yes", "c"]


def test_an_id_for_two_examples_is_an_error(tmp_path):
    rows = [{"n": 1, "prompt": "a", "answer": "x"}, {"n": 1, "prompt": "b", "answer": "x"}]
    with pytest.raises(DataError, match=r"id 1 belongs to two examples, 'a' \(.*row 1\) and 'b' \(.*row 2\)"):
        read(files(tmp_path, rows, id="n"))


def test_several_mistakes_are_told_at_once_and_reading_ends_after_a_few(tmp_path):
    rows = [{"n": i, "prompt": f"a{i}", "answer": "x"} for i in range(9)]
    rows[2]["answer"], rows[4]["prompt"], rows[6]["n"] = None, " ", 1
    with pytest.raises(DataError) as told:
        read(files(tmp_path, rows, id="n"))
    first, *others = str(told.value).splitlines()
    assert first == "3 rows cannot be used:"
    assert ["row 3" in others[0], "row 5" in others[1], "(" in others[2] and "row 7" in others[2]] == [True] * 3
    for row in rows:
        row["answer"] = None
    with pytest.raises(DataError, match=r"the first 5 rows that cannot be used:(\n.*row [1-5]: .*){5}$"):
        read(files(tmp_path, rows, id="n"))


def test_an_example_may_occur_twice_with_its_id(tmp_path):
    rows = [{"n": 1, "prompt": "a", "answer": "x"}] * 2
    assert read(files(tmp_path, rows, id="n"))["id"].to_pylist() == ["1"]


def test_a_null_answer_names_its_row(tmp_path):
    source = files(tmp_path, [{"prompt": "a", "answer": "x"}, {"prompt": "b", "answer": None}])
    with pytest.raises(DataError, match=r"a.jsonl row 2: the answer .* is empty or null"):
        read(source)
    assert read(source, answer_optional=True)["answer"].to_pylist() == ["x", None]


def test_a_null_difficulty_names_its_row(tmp_path):
    source = files(tmp_path, [{"prompt": "a", "answer": "x", "level": None}], difficulty="level")
    with pytest.raises(DataError, match=r"a.jsonl row 1: the difficulty \(columns.difficulty 'level'\) is null"):
        read(source)


def test_generated_examples_are_distinct_over_both_parts():
    table = read(ReasoningGymSource(dataset="number_sorting", easy=SMALL, hard=SMALL), 12, 12)
    keys = {content_key(prompt) for prompt in table["prompt"].to_pylist()}
    assert len(keys) == 24
    assert table["difficulty"].to_pylist() == [0.0] * 12 + [1.0] * 12


def test_drawing_goes_on_until_there_are_enough_and_says_when_there_are_no_more():
    source = ReasoningGymSource(dataset="number_sorting", easy=SMALL)
    assert read(source, 32).num_rows == 32
    with pytest.raises(DataError, match=r"only 32 distinct easy prompts .* 33 are wanted: .* data.sizes.easy_train"):
        read(source, 33)


def test_excluded_content_is_not_drawn():
    source = ReasoningGymSource(dataset="number_sorting", easy=SMALL)
    known = [content_key(prompt) for prompt in read(source, 20)["prompt"].to_pylist()]
    other = {content_key(prompt) for prompt in read(source, 12, exclude=known)["prompt"].to_pylist()}
    assert not other & set(known)


def test_generated_examples_do_not_depend_on_how_many_are_asked_for():
    source = ReasoningGymSource(dataset="number_sorting")
    assert read(source, 60).slice(0, 20) == read(source, 20)


def test_a_data_set_without_answers_is_an_error_that_points_to_templates():
    with pytest.raises(
        DataError, match=r"graph_color \(easy\) row 0: the answer .*columns present: question, answer, met"
    ):
        read(ReasoningGymSource(dataset="graph_color"), 1)


def test_raw_rows_of_files_come_once_and_those_of_a_generator_without_end(tmp_path):
    rows = [{"prompt": "a", "text": "b"}]
    assert list(iterate_rows(files(tmp_path, rows), part="hard", seed=3)) == rows
    stream = iterate_rows(ReasoningGymSource(dataset="chain_sum"), part="easy", seed=3)
    assert len(list(itertools.islice(stream, 2500))) == 2500


def data(source, **fields):
    split = {"difficulty_from": "source" if source.kind == "reasoning_gym" else "answer_length"}
    return DataConfig(**({"source": source, "split": split} | fields))


def test_a_good_source_is_shown(tmp_path):
    rows = [{"prompt": "a", "answer": "b"}]
    assert check_source(data(files(tmp_path, rows)))["prompt"].to_pylist() == ["a"]
    gym = ReasoningGymSource(dataset="chain_sum", easy={"max_terms": 2}, hard={"min_terms": 5, "max_terms": 6})
    assert check_source(data(gym))["difficulty"].to_pylist() == [0.0, 1.0]


def test_the_check_finds_a_missing_column(tmp_path):
    with pytest.raises(DataError, match=r"a.jsonl row 1 has no column 'answer' .* columns present: prompt, label"):
        check_source(data(files(tmp_path, [{"prompt": "a", "label": "b"}])))


def test_the_check_finds_an_empty_source(tmp_path):
    with pytest.raises(DataError, match=r"the files source holds no rows: .*a.jsonl"):
        check_source(data(files(tmp_path, [])))


def test_the_check_finds_a_mistake_in_the_hard_config():
    with pytest.raises(DataError, match=r"hard.terms: reasoning_gym data set chain_sum has no such setting"):
        check_source(data(ReasoningGymSource(dataset="chain_sum", hard={"terms": 3})))


def test_the_check_looks_at_the_hard_source_too(tmp_path):
    source = files(tmp_path, [{"prompt": "a", "answer": "b"}])
    missing = FilesSource(paths=[str(tmp_path / "nowhere.csv")])
    with pytest.raises(DataError, match=r"nowhere.csv does not exist"):
        check_source(data(source, split={"mode": "cross_source"}, hard_source=missing))


def test_the_check_leaves_alone_what_the_mode_does_not_read(tmp_path):
    gym = ReasoningGymSource(dataset="chain_sum", hard={"terms": 3})
    hard = files(tmp_path, [{"prompt": "a", "answer": None}])
    assert check_source(data(gym, split={"mode": "cross_source"}, hard_source=hard)).num_rows == 2


def test_the_identity_has_both_sources(tmp_path):
    source = files(tmp_path, [{"prompt": "a", "answer": "b"}])
    gym = ReasoningGymSource(dataset="chain_sum")
    both = sources_identity(data(source, split={"mode": "cross_source"}, hard_source=gym))
    assert both["hard_source"]["version"] == version("reasoning-gym")
    assert both["source"]["files"][0]["path"] == source.paths[0]
    assert json.loads(json.dumps(both)) == both
    assert set(sources_identity(data(source))) == {"source"}


def by_difficulty(tmp_path, *parts):
    paths = [files(tmp_path, rows, f"{i}.jsonl").paths[0] for i, rows in enumerate(parts)]
    source = FilesSource(paths=paths, columns=Columns(difficulty="level"))
    return DataConfig(source=source, split={"mode": "difficulty", "difficulty_from": "column", "easy_max": 1})


def test_an_answer_column_that_no_file_has_is_found_before_anything_starts(tmp_path):
    easy, hard = [{"prompt": "a", "reply": "x", "level": 0}], [{"prompt": "b", "level": 2}]
    with pytest.raises(DataError, match="answer"):
        check_source(by_difficulty(tmp_path, easy, hard))
    labelled = [{"prompt": "a", "answer": "x", "level": 0}]
    assert check_source(by_difficulty(tmp_path, hard, labelled))["answer"].to_pylist() == [None, "x"]


SPLIT_ROWS = [
    {"prompt": "a", "answer": "1", "split": "train"},
    {"prompt": "b", "answer": "2", "split": "test"},
    {"prompt": "c", "answer": None, "split": "train"},
]


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ("split == 'train' and answer is not none", ["a"]),
        ("{{ answer is not none }}", ["a", "b"]),
        ("split in ['test']", ["b"]),
    ],
)
def test_rows_are_filtered_by_an_expression_and_counted(tmp_path, where, kept):
    source, tally = files(tmp_path, SPLIT_ROWS).model_copy(update={"where": where}), Tally()
    assert read(source, tally=tally)["prompt"].to_pylist() == kept
    assert tally.record().unmatched == 3 - len(kept)
    assert check_source(DataConfig(source=source, split={"mode": "random"}))["prompt"].to_pylist() == kept[:1]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("split ==", "is not valid Jinja"),
        ("part == 'a'", r"where \"part == 'a'\" failed: 'part' is undefined; columns"),
    ],
)
def test_a_wrong_filter_is_an_error(tmp_path, where, message):
    with pytest.raises(DataError, match=message):
        read(files(tmp_path, SPLIT_ROWS).model_copy(update={"where": where}))


def test_generated_rows_are_filtered_too():
    source = ReasoningGymSource(dataset="number_sorting", where="metadata.direction == 'ascending'")
    assert all("ascending" in prompt for prompt in read(source, 5)["prompt"].to_pylist())
