import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ensemw2s.config import Columns, DataConfig, FilesSource, load_config
from ensemw2s.data.examples import EXAMPLE_SCHEMA, content_key, example_table
from ensemw2s.data.splits import SPLITS, check_disjoint, folds, make_splits
from ensemw2s.errors import DataError

SIZES = {"easy_train": 8, "easy_validation": 3, "id_test": 4, "hard_unlabelled": 7, "ood_test": 5, "hard_validation": 0}
NUMBERS = {"min_decimals": 0, "max_decimals": 0, "min_value": 0, "max_value": 25}
GYM = {
    "kind": "reasoning_gym",
    "dataset": "number_sorting",
    "easy": NUMBERS | {"min_numbers": 3, "max_numbers": 4},
    "hard": NUMBERS | {"min_numbers": 5, "max_numbers": 5},
    "columns": {
        "prompt": "{{ metadata.direction }} {{ metadata.original_numbers | map('float') | map('int') | join(' ') }}",
        "answer": "{{ metadata.sorted_numbers | map('float') | map('int') | join(' ') }}",
    },
}


def gym(**fields):
    return DataConfig(**({"source": GYM, "sizes": SIZES} | fields))


def rows(n, start=0, **fields):
    return [
        {"prompt": f"question {i}", "answer": f"answer {i}", "level": i % 10} | fields for i in range(start, start + n)
    ]


def files(tmp_path, content, name="a.jsonl", **columns):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return FilesSource(paths=[str(path)], columns=Columns(**columns))


def by_level(tmp_path, content, easy_max=None, **fields):
    split = {"difficulty_from": "column", "easy_max": easy_max}
    return DataConfig(
        **({"source": files(tmp_path, content, difficulty="level"), "split": split, "sizes": SIZES} | fields)
    )


def sizes_of(splits):
    return {name: table.num_rows for name, table in splits.tables().items()}


def prompts(table):
    return set(table["prompt"].to_pylist())


def test_every_split_has_its_size_and_schema():
    splits = make_splits(gym(), seed=0)
    assert sizes_of(splits) == SIZES
    assert tuple(splits.tables()) == SPLITS
    assert all(table.schema == EXAMPLE_SCHEMA for table in splits.tables().values())


def test_easy_and_hard_come_from_their_own_config():
    for name, table in make_splits(gym(), seed=0).tables().items():
        lengths = {len(prompt.split()) - 1 for prompt in table["prompt"].to_pylist()}
        assert lengths <= ({3, 4} if name in SPLITS[:3] else {5})


def test_hard_labels_are_kept_apart_from_the_prompts():
    splits = make_splits(gym(), seed=0)
    assert splits.hard_unlabelled["answer"].null_count == SIZES["hard_unlabelled"]
    assert splits.hard_labels.column_names == ["id", "answer"]
    assert splits.hard_labels["id"] == splits.hard_unlabelled["id"]
    pairs = zip(splits.hard_unlabelled["prompt"].to_pylist(), splits.hard_labels["answer"].to_pylist(), strict=True)
    for prompt, answer in pairs:
        assert sorted(prompt.split()[1:]) == sorted(answer.split())


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_examples():
    def blob(splits):
        sink = pa.BufferOutputStream()
        for table in [*splits.tables().values(), splits.hard_labels]:
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
        return sink.getvalue().to_pybytes()

    assert blob(make_splits(gym(), seed=0)) == blob(make_splits(gym(), seed=0))
    assert not prompts(make_splits(gym(), seed=0).easy_train) & prompts(make_splits(gym(), seed=1).easy_train)


@pytest.mark.slow
def test_another_process_makes_the_same_splits():
    script = (
        "import json, sys\nfrom ensemw2s.config import DataConfig\nfrom ensemw2s.data.splits import make_splits\n"
        "splits = make_splits(DataConfig.model_validate_json(sys.argv[1]), seed=3)\n"
        "print(json.dumps({name: table.to_pylist() for name, table in splits.tables().items()}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, gym().model_dump_json()],
        env=os.environ | {"PYTHONHASHSEED": "12345"},
        capture_output=True,
        text=True,
        check=True,
    )
    here = {name: table.to_pylist() for name, table in make_splits(gym(), seed=3).tables().items()}
    assert json.loads(done.stdout) == here


def test_a_file_is_divided_at_the_threshold_of_a_column(tmp_path):
    splits = make_splits(by_level(tmp_path, rows(40), easy_max=4), seed=0)
    assert sizes_of(splits) == SIZES
    assert max(max(splits.tables()[name]["difficulty"].to_pylist()) for name in SPLITS[:3]) <= 4
    assert min(min(splits.tables()[name]["difficulty"].to_pylist()) for name in SPLITS[3:5]) > 4


def test_without_a_threshold_the_median_divides(tmp_path):
    splits = make_splits(by_level(tmp_path, rows(40)), seed=0)
    assert set(splits.easy_train["difficulty"].to_pylist()) <= {0, 1, 2, 3, 4}
    assert set(splits.ood_test["difficulty"].to_pylist()) <= {5, 6, 7, 8, 9}


def test_the_order_of_rows_in_a_file_does_not_change_the_splits(tmp_path):
    forward = make_splits(by_level(tmp_path, rows(40)), seed=0)
    assert forward == make_splits(by_level(tmp_path, rows(40)[::-1]), seed=0)


def test_longer_answers_are_harder(tmp_path):
    content = [{"prompt": f"q{i}", "answer": "x" * (1 + i % 4)} for i in range(60)]
    config = DataConfig(source=files(tmp_path, content), split={"difficulty_from": "answer_length"}, sizes=SIZES)
    splits = make_splits(config, seed=0)
    assert set(splits.easy_train["difficulty"].to_pylist()) <= {1, 2}
    assert set(splits.ood_test["difficulty"].to_pylist()) <= {3, 4}


def test_a_generator_is_asked_for_more_until_both_sides_of_a_threshold_are_full():
    split = {"difficulty_from": "answer_length", "easy_max": 8}
    sizes = SIZES | {"easy_train": 40}
    splits = make_splits(gym(split=split, sizes=sizes), seed=0)
    assert splits.easy_train.num_rows == 40
    assert max(len(answer) for answer in splits.easy_train["answer"].to_pylist()) <= 8


def test_a_reference_rates_examples_it_is_given(tmp_path):
    seen = []

    def reference(table):
        seen.append(table)
        return np.array([float(prompt.split()[1]) for prompt in table["prompt"].to_pylist()])

    config = DataConfig(
        source=files(tmp_path, rows(40)), split={"difficulty_from": "reference_loss", "easy_max": 19.5}, sizes=SIZES
    )
    splits = make_splits(config, seed=0, reference=reference)
    assert [table.num_rows for table in seen] == [40]
    assert all(table["answer"].null_count == 0 for table in seen)
    assert max(splits.easy_train["difficulty"].to_pylist()) < 20 <= min(splits.ood_test["difficulty"].to_pylist())


def test_the_median_of_a_reference_gives_both_sides_of_a_generator_enough():
    config = gym(split={"difficulty_from": "reference_loss"})
    splits = make_splits(config, seed=0, reference=lambda table: np.arange(table.num_rows, dtype=np.float64))
    assert sizes_of(splits) == SIZES


def test_a_reference_loss_that_is_not_finite_is_an_error(tmp_path):
    config = DataConfig(source=files(tmp_path, rows(40)), split={"difficulty_from": "reference_loss"}, sizes=SIZES)
    with pytest.raises(
        DataError, match=r"loss is not finite for 40 of 40 examples; lower data.split.reference.learning"
    ):
        make_splits(config, seed=0, reference=lambda table: np.full(table.num_rows, np.nan))


def test_random_mode_mixes_both_configs_into_every_side():
    splits = make_splits(gym(split={"mode": "random"}), seed=0)
    assert sizes_of(splits) == SIZES
    for names in (SPLITS[:3], SPLITS[3:]):
        levels = [level for name in names for level in splits.tables()[name]["difficulty"].to_pylist()]
        assert set(levels) == {0.0, 1.0}
    total = sum(sum(table["difficulty"].to_pylist()) for table in splits.tables().values())
    assert total == sum(SIZES.values()) // 2


def test_random_mode_needs_no_difficulty_in_a_file(tmp_path):
    config = DataConfig(source=files(tmp_path, rows(27)), split={"mode": "random"}, sizes=SIZES)
    assert sizes_of(make_splits(config, seed=0)) == SIZES


def test_cross_source_takes_easy_from_one_and_hard_from_the_other(tmp_path):
    easy, hard = files(tmp_path, rows(20)), files(tmp_path, rows(20, start=15), "b.jsonl")
    config = DataConfig(source=easy, hard_source=hard, split={"mode": "cross_source"}, sizes=SIZES)
    splits = make_splits(config, seed=0)
    assert sizes_of(splits) == SIZES
    assert prompts(splits.easy_train) <= {row["prompt"] for row in rows(20)}
    # What is in both counts as easy.
    assert prompts(splits.hard_unlabelled) | prompts(splits.ood_test) <= {row["prompt"] for row in rows(15, start=20)}
    assert set(splits.ood_test["difficulty"].to_pylist()) == {1.0}


def test_cross_source_takes_the_easy_config_of_a_generator(tmp_path):
    config = gym(hard_source=files(tmp_path, rows(20)), split={"mode": "cross_source"})
    splits = make_splits(config, seed=0)
    assert {len(answer.split()) for answer in splits.easy_train["answer"].to_pylist()} <= {3, 4}


def test_two_sources_may_not_share_ids(tmp_path):
    numbered = [row | {"n": i} for i, row in enumerate(rows(40))]
    easy, hard = (
        files(tmp_path, numbered[:20], id="n"),
        files(tmp_path, [r | {"n": r["n"] - 20} for r in numbered[20:]], "b.jsonl", id="n"),
    )
    config = DataConfig(source=easy, hard_source=hard, split={"mode": "cross_source"}, sizes=SIZES)
    both = r"20 ids in common, 0 for one \(.*/a.jsonl row 1, .*/b.jsonl row 1\)"
    with pytest.raises(DataError, match=both + r"; .* hard_source.columns.id \"hard-\{\{ id \}\}\""):
        make_splits(config, seed=0)


def test_too_few_easy_examples_say_how_many_and_which_keys(tmp_path):
    message = (
        r"only 12 distinct easy examples, 15 are wanted \(data.sizes.easy_train 8 \+ data.sizes.easy_validation 3 \+ "
        r"data.sizes.id_test 4\): .*data.split.easy_max \(2; at most that is easy, and difficulties go from 0 to 9"
    )
    with pytest.raises(DataError, match=message):
        make_splits(by_level(tmp_path, rows(40), easy_max=2), seed=0)


def test_no_hard_examples_at_all_are_an_error(tmp_path):
    message = r"no distinct hard examples, 12 are wanted \(data.sizes.ood_test 5 \+ data.sizes.hard_unlabelled 7\)"
    with pytest.raises(DataError, match=message):
        make_splits(by_level(tmp_path, rows(40), easy_max=100), seed=0)


def test_duplicates_do_not_count_towards_the_sizes(tmp_path):
    content = rows(14) + [row | {"prompt": f" {row['prompt']}"} for row in rows(40)][:14]
    config = DataConfig(source=files(tmp_path, content), split={"mode": "random"}, sizes=SIZES)
    with pytest.raises(DataError, match=r"no distinct hard examples|only 14 distinct easy examples"):
        make_splits(config, seed=0)


def test_an_empty_file_is_an_error(tmp_path):
    with pytest.raises(DataError, match="the source holds no rows"):
        make_splits(by_level(tmp_path, []), seed=0)


def test_hard_rows_may_lack_answers_and_are_never_tested_on(tmp_path):
    content = rows(20, level=0) + rows(6, start=20, level=1) + rows(6, start=26, level=1, answer=None)
    splits = make_splits(by_level(tmp_path, content, easy_max=0), seed=0)
    assert splits.ood_test["answer"].null_count == 0
    assert splits.hard_labels["answer"].null_count == 6
    assert splits.hard_labels.num_rows == 7


def test_a_hard_validation_split_has_answers_and_is_nobody_elses(tmp_path):
    content = rows(20, level=0) + rows(9, start=20, level=1) + rows(6, start=30, level=1, answer=None)
    sizes = {**SIZES, "hard_validation": 2}
    splits = make_splits(by_level(tmp_path, content, easy_max=0, sizes=sizes), seed=0)
    assert sizes_of(splits) == sizes
    assert splits.hard_validation["answer"].null_count == 0
    check_disjoint(splits)
    without = make_splits(by_level(tmp_path, content, easy_max=0), seed=0)
    assert without.ood_test.equals(splits.ood_test), "the test stays what it was"
    with pytest.raises(DataError, match=r"5 are wanted .*|.*9 hard examples with an answer, 11 are wanted"):
        make_splits(
            by_level(tmp_path, content, easy_max=0, sizes={**sizes, "hard_validation": 6, "hard_unlabelled": 1}), seed=0
        )


def test_easy_rows_may_not_lack_answers(tmp_path):
    content = rows(20, level=0) + rows(20, start=20, level=1)
    content[3]["answer"] = None
    with pytest.raises(DataError, match=r"a.jsonl row 4: 'question 3' is easy \(difficulty 0\) and has no answer"):
        make_splits(by_level(tmp_path, content, easy_max=0), seed=0)


def test_a_test_needs_enough_hard_rows_with_answers(tmp_path):
    content = rows(20, level=0) + rows(4, start=20, level=1) + rows(20, start=30, level=1, answer=None)
    with pytest.raises(DataError, match=r"4 hard examples with an answer, 5 are wanted \(data.sizes.ood_test 5\)"):
        make_splits(by_level(tmp_path, content, easy_max=0), seed=0)


def test_all_rows_need_answers_when_their_length_is_the_difficulty(tmp_path):
    content = [*rows(40), {"prompt": "x", "answer": None}]
    config = DataConfig(source=files(tmp_path, content), split={"difficulty_from": "answer_length"}, sizes=SIZES)
    with pytest.raises(DataError, match=r"a.jsonl row 41: the answer"):
        make_splits(config, seed=0)


def test_splits_are_disjoint_by_id_and_by_content():
    splits = make_splits(gym(split={"mode": "random"}), seed=0)
    everything = [prompt for table in splits.tables().values() for prompt in table["prompt"].to_pylist()]
    ids = [identity for table in splits.tables().values() for identity in table["id"].to_pylist()]
    assert len(set(ids)) == len({content_key(prompt) for prompt in everything}) == sum(SIZES.values())


def test_content_in_two_splits_is_found_whatever_its_white_space_and_id():
    splits = make_splits(gym(), seed=0)
    row = splits.easy_train.slice(0, 1).to_pylist()[0]
    copy = example_table([row | {"id": "other", "prompt": f" {row['prompt']}"}])
    with pytest.raises(DataError, match=r"in easy_train and other in ood_test have the same prompt up to white"):
        check_disjoint(dataclasses.replace(splits, ood_test=copy))


def test_an_id_in_two_splits_is_found():
    splits = make_splits(gym(), seed=0)
    row = splits.easy_train.slice(0, 1).to_pylist()[0]
    with pytest.raises(DataError, match="is in easy_train and in id_test; ids must be unique"):
        check_disjoint(dataclasses.replace(splits, id_test=example_table([row | {"prompt": "another"}])))


@pytest.mark.parametrize(("n", "k"), [(10, 3), (9, 3), (3, 3), (100, 7)])
def test_folds_are_balanced_and_repeat_by_seed(n, k):
    first = folds(n, k, seed=0)
    counts = np.bincount(first, minlength=k)
    assert first.dtype == np.int64
    assert counts.sum() == n
    assert counts.max() - counts.min() <= 1
    assert (first == folds(n, k, seed=0)).all()


def test_folds_differ_by_seed():
    assert (folds(100, 5, seed=0) != folds(100, 5, seed=1)).any()


def test_more_folds_than_examples_are_an_error():
    with pytest.raises(DataError, match=r"2 examples cannot be divided into 3 folds; lower data.split.reference.folds"):
        folds(2, 3, seed=0)


def variants(n):
    """Twice n rows, half of them easy: prompts that differ in case alone, with another answer each."""
    return [
        {"prompt": word + f" {i}", "answer": f"{word} {i}", "level": i % 2} for i in range(n) for word in ("ab", "AB")
    ]


def test_prompts_that_differ_in_case_are_different_examples(tmp_path):
    splits = make_splits(by_level(tmp_path, variants(16), easy_max=0), seed=0)
    assert sum(table.num_rows for table in splits.tables().values()) == sum(SIZES.values())
    assert not splits.dropped


def test_dropped_rows_are_counted_and_those_with_another_answer_are_named(tmp_path):
    again = [{"prompt": "question  3", "answer": "answer 3", "level": 3}, rows(1, 4)[0] | {"answer": "another"}]
    splits = make_splits(by_level(tmp_path, [*rows(60), *again], easy_max=4), seed=0)
    path = tmp_path / "a.jsonl"
    assert splits.dropped.sentences() == [
        "2 rows are dropped because an earlier row has the same prompt, 1 of them with another answer.",
        f"{path} row 62 answers 'another', {path} row 5 with the same prompt 'answer 4'.",
    ]


def test_the_error_of_too_few_examples_says_what_was_dropped(tmp_path):
    content = [*rows(20), *(row | {"answer": "x"} for row in rows(20))]
    with pytest.raises(DataError, match=r"only 10 distinct easy examples.* 20 rows are dropped .* 20 of them with"):
        make_splits(by_level(tmp_path, content, easy_max=4), seed=0)


def test_the_recipe_for_questions_and_answers_takes_two_csv_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("easy.csv").write_text("question,answer\n" + "".join(f"easy {i}?,{i}\n" for i in range(600)))
    hard = [f"hard {i}?,{i if i % 9 == 0 else ''}\n" for i in range(450)]
    Path("hard.csv").write_text("question,answer\n" + "".join(hard))
    config = load_config("qa")
    splits = make_splits(config.data, seed=0)
    assert {name: table.num_rows for name, table in splits.tables().items()} == config.data.sizes.model_dump()
    assert splits.easy_train["answer"].null_count == 0
    assert splits.ood_test["answer"].null_count == 0


def test_the_recipe_for_questions_and_answers_says_that_some_hard_ones_must_be_answered_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("easy.csv").write_text("question,answer\n" + "".join(f"easy {i}?,{i}\n" for i in range(600)))
    Path("hard.csv").write_text("question\n" + "".join(f"hard {i}?\n" for i in range(450)))
    with pytest.raises(DataError, match=r"0 hard examples with an answer, 50 are wanted .*ood_test 50.*by hand"):
        make_splits(load_config("qa").data, seed=0)
