"""What a report says a run is about: source, what is easy and hard, sizes, and an example of each."""

from typing import Any

import pyarrow as pa
import pytest

from ensemw2s.config import DataConfig
from ensemw2s.evaluation.task import LONGEST, Task, split_words


def data(**rest: Any) -> DataConfig:
    columns = {"difficulty": "level"}
    source = {"kind": "files", "paths": ["mine.jsonl"], "columns": columns}
    return DataConfig.model_validate({"source": source, "split": {"difficulty_from": "column", "easy_max": 2}} | rest)


def table(n: int, word: str = "x") -> pa.Table:
    return pa.table({"prompt": [f"{word} {i}" for i in range(n)], "answer": [f"{word}{i}" for i in range(n)]})


TESTS = {"id_test": table(3, "easy"), "ood_test": table(2, "hard")}
SPLITS = {"easy_train": table(7), "hard_unlabelled": table(5)} | TESTS


def test_sentences_name_the_source_what_is_easy_and_what_the_splits_are_for() -> None:
    said = " ".join(Task.of(data(), SPLITS).sentences())
    assert "The examples come from mine.jsonl. An example is easy if its level is at most 2, else hard." in said
    assert "learn from 7 easy examples with answers" in said
    assert "answers 5 hard prompts that have none" in said
    assert "ID (in distribution) means 3 easy examples that no model has seen, OOD (out of distribution) 2 hard" in said


def test_there_is_an_example_of_each_cut_where_it_is_long() -> None:
    found = Task.of(data(), SPLITS)
    assert (found.easy.prompt, found.hard.answer) == ("easy 0", "hard0")
    long = Task.of(data(), SPLITS | {"id_test": table(1, "y" * 1000)})
    assert long.easy.prompt == "y" * LONGEST + "…"


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ({"difficulty_from": "column"}, "if its level is at most the median"),
        ({"difficulty_from": "answer_length", "easy_max": 40}, "if its answer has at most 40 characters"),
        ({"mode": "random"}, "drawn from the same ones"),
    ],
)
def test_what_is_easy_is_said_for_every_way_to_split(split: dict[str, Any], words: str) -> None:
    assert words in split_words(data(split=split))


def test_of_a_generator_only_the_settings_that_differ_are_named() -> None:
    source = {"kind": "reasoning_gym", "dataset": "number_sorting"}
    source |= {"easy": {"min_numbers": 3, "max_value": 25}, "hard": {"min_numbers": 5, "max_value": 25}}
    found = data(source=source, split={"difficulty_from": "source"})
    assert split_words(found) == "Easy ones have min_numbers 3; hard ones have min_numbers 5."
