"""Few-shot examples: every prompt begins with the same solved examples, and no example is among its own."""

import pytest

from ensemw2s.config import DataConfig, FilesSource
from ensemw2s.data.examples import example_table
from ensemw2s.data.shots import take_shots, with_template, write_template
from ensemw2s.errors import DataError


def config(**fields) -> DataConfig:
    given = {"prompt_template": "Q: {prompt}\nA:", "shots": 2} | fields
    return DataConfig(source=FilesSource(paths=["-"]), split={"mode": "random"}, **given)


def easy(*prompts: str):
    return example_table(
        {"id": prompt, "prompt": prompt, "answer": f"{prompt}!", "difficulty": 0.0, "choices": None}
        for prompt in prompts
    )


def test_the_template_shows_solved_examples_before_each_prompt():
    made, _ = take_shots(easy("a", "b", "c"), config())
    assert made.prompt_template == "Q: a\nA: a!\n\nQ: b\nA: b!\n\nQ: {prompt}\nA:"


def test_what_is_shown_is_not_trained_on():
    _, left = take_shots(easy("a", "b", "c", "d"), config())
    assert left["id"].to_pylist() == ["c", "d"]


def test_an_example_that_writes_the_place_of_the_prompt_is_not_shown():
    made, left = take_shots(easy("a {prompt}", "b", "c", "d"), config())
    assert left["id"].to_pylist() == ["a {prompt}", "d"]
    assert made.prompt_template.count("{prompt}") == 1


def test_some_examples_must_be_left_to_train_on():
    with pytest.raises(DataError, match=r"data\.shots 2 leaves none of 2 easy examples"):
        take_shots(easy("a", "b"), config())
    with pytest.raises(ValueError, match=r"shots is 2; sizes\.easy_train must be larger"):
        config(sizes={"easy_train": 2})


def test_later_readers_find_the_template_beside_the_splits(tmp_path):
    made, _ = take_shots(easy("a\r\n", "b", "c"), config())
    assert with_template(config(), tmp_path) == config(), "a run without shots has no such file"
    write_template(tmp_path, made)
    assert with_template(config(), tmp_path) == made
