import dataclasses
import json

import numpy as np
import pytest

from ensemw2s.config import Corpus, DataConfig
from ensemw2s.data.examples import content_key, example_table
from ensemw2s.data.splits import make_splits
from ensemw2s.data.tokens import TOKENS_SCHEMA, TokenData
from ensemw2s.errors import DataError
from ensemw2s.models import corpus, tiny

SIZES = {"easy_train": 30, "easy_validation": 20, "id_test": 20, "hard_unlabelled": 30, "ood_test": 20}
COLUMNS = {
    "prompt": "{{ metadata.original_numbers | join(' ') }} {{ metadata.direction }}",
    "answer": "{{ metadata.sorted_numbers | join(' ') }}",
}


def numbers(low: int, high: int, value: int = 9) -> dict:
    common = {"min_decimals": 0, "max_decimals": 0, "min_value": 0, "max_value": value}
    return {"min_numbers": low, "max_numbers": high, **common}


def generated(**fields) -> DataConfig:
    """Two or three digits to sort, and three or four that are hard: few enough that fresh ones often repeat."""
    source = {
        "kind": "reasoning_gym",
        "dataset": "number_sorting",
        "easy": numbers(2, 2),
        "hard": numbers(3, 3),
        "columns": COLUMNS,
    }
    return DataConfig.model_validate({"source": source, "sizes": SIZES, **fields})


def files(path, **fields) -> DataConfig:
    """Sums; the hard ones are those of level 1, and every answer has a word that no prompt has."""
    rows = [{"prompt": f"{i} plus {i % 7} =", "answer": f"sum {i + i % 7}", "level": int(i >= 80)} for i in range(150)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"kind": "files", "paths": [str(path)], "columns": {"difficulty": "level"}}
    split = {"mode": "difficulty", "difficulty_from": "column", "easy_max": 0}
    return DataConfig.model_validate({"source": source, "split": split, "sizes": SIZES, **fields})


PLAIN = Corpus(templates=["P:{{ prompt }}|A:{{ answer }}"], corrupted=0.0, weak_task_fraction=0.0)


@pytest.fixture(scope="module")
def splits():
    return make_splits(generated(), seed=0)


def texts(data, splits, settings=PLAIN, seed=0, **amounts) -> dict[str, list[str]]:
    return corpus.documents(data, settings, splits, amounts=amounts or {"weak": 400}, seed=seed)


def prompts_of(documents: list[str]) -> set[str]:
    return {content_key(text.removeprefix("P:").split("|A:")[0]) for text in documents}


def test_no_document_has_a_prompt_of_a_held_out_split(splits):
    seen = prompts_of(texts(generated(), splits)["weak"])
    train = {content_key(p) for p in splits.easy_train["prompt"].to_pylist()}
    held_out = {
        content_key(prompt)
        for name, table in splits.tables().items()
        if name != "easy_train"
        for prompt in table["prompt"].to_pylist()
    }
    assert len(held_out) == 90
    assert not seen & held_out
    assert seen & train, "the easy training examples are no secret, and so few digits repeat them"
    # the test would not find anything without the rule: drawn freely, held-out prompts do occur
    empty = example_table([])
    free = type(splits)(**dict.fromkeys(splits.tables(), empty), hard_labels=splits.hard_labels)
    assert prompts_of(texts(generated(), free)["weak"]) & held_out


def test_generated_documents_are_easy_and_hard_in_turn(splits):
    lengths = [len(text.split("|A:")[1].split()) for text in texts(generated(), splits)["weak"]]
    assert set(lengths) == {2, 3}
    assert 0.3 < np.mean(np.array(lengths) == 2) < 0.6  # easy prompts are fewer, so more of them are held out


def test_the_seed_decides_the_documents(splits):
    one, again, other = (texts(generated(), splits, seed=seed) for seed in (0, 0, 1))
    assert one == again
    assert one != other


def test_the_order_of_roles_and_their_amounts_are_kept(splits):
    made = texts(generated(), splits, weak=30, strong=50)
    assert {role: len(part) for role, part in made.items()} == {"weak": 30, "strong": 50}
    assert made["weak"] == made["strong"][:30]


def test_templates_take_turns_and_see_the_source_row(splits):
    settings = PLAIN.model_copy(update={"templates": ["A {{ metadata.direction }}", "B {{ answer }}"]})
    starts = [text[0] for text in texts(generated(), splits, settings, weak=40)["weak"]]
    assert starts == list("AABB" * 10)


def test_a_share_of_the_documents_is_in_the_tasks_own_format(splits):
    settings = PLAIN.model_copy(update={"weak_task_fraction": 0.3, "strong_task_fraction": 0.0})
    data = generated(prompt_template="Q {prompt} ?", answer_prefix=" -> ")
    made = texts(data, splits, settings, weak=400, strong=400)
    tasks = [text for text in made["weak"] if text.startswith("Q ")]
    assert 0.24 < len(tasks) / 400 < 0.36
    assert all(" ? -> " in text for text in tasks)
    assert not any(text.startswith("Q ") for text in made["strong"])


def test_a_share_of_the_documents_has_one_character_of_its_kind_replaced(splits):
    clean = texts(generated(), splits, PLAIN)["weak"]
    dirty = texts(generated(), splits, PLAIN.model_copy(update={"corrupted": 0.25}))["weak"]
    changes = [[(a, b) for a, b in zip(x, y, strict=True) if a != b] for x, y in zip(clean, dirty, strict=True)]
    assert {len(change) for change in changes} == {0, 1}
    assert 0.19 < np.mean([len(change) for change in changes]) < 0.31
    for before, after in (pair for change in changes for pair in change):
        assert before.isdigit() == after.isdigit()
        assert before.isupper() == after.isupper()


def test_text_without_a_letter_or_digit_cannot_be_corrupted():
    assert corpus._corrupt("+ - ( )", np.random.default_rng(0)) == "+ - ( )"


def test_of_files_only_easy_training_examples_are_read(tmp_path):
    data = files(tmp_path / "rows.jsonl")
    splits = make_splits(data, seed=0)
    made = texts(data, splits, PLAIN.model_copy(update={"weak_task_fraction": 0.5}), weak=1000)["weak"]
    assert len(made) == 30, "no document is made up"
    assert all("sum" in text for text in made)
    assert {text.startswith("P:") for text in made} == {True, False}
    held_out = {
        prompt
        for name in ("easy_validation", "id_test", "hard_unlabelled", "ood_test")
        for prompt in splits.tables()[name]["prompt"].to_pylist()
    }
    assert not held_out & {text.removeprefix("P:").split("=")[0] + "=" for text in made}


def test_hard_answers_stay_out_even_of_splits_that_hold_them(tmp_path):
    data = files(tmp_path / "rows.jsonl")
    splits = make_splits(data, seed=0)
    known = splits.hard_unlabelled.set_column(2, "answer", splits.hard_labels["answer"])
    leaky = dataclasses.replace(splits, hard_unlabelled=known)
    assert texts(data, leaky, weak=1000) == texts(data, splits, weak=1000)


def test_files_of_ones_own_are_read_in_their_order(tmp_path, splits):
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps({"body": f"line {i}"}) + "\n" for i in range(9)))
    settings = PLAIN.model_copy(update={"paths": [str(path)], "text_column": "body"})
    made = texts(generated(), splits, settings, weak=4, strong=20)
    assert made["weak"] == [f"line {i}" for i in range(4)]
    assert len(made["strong"]) == 9
    with pytest.raises(
        DataError, match=r"corpus.text_column: text is no text column of .*own.jsonl, its columns are body"
    ):
        texts(generated(), splits, settings.model_copy(update={"text_column": "text"}))


def test_a_generated_source_beside_a_fixed_one_is_not_asked_for_more_than_it_has(tmp_path):
    """Mode cross_source: easy examples are generated, hard ones are read."""
    hard = files(tmp_path / "rows.jsonl").source
    data = generated(hard_source=hard.model_dump(), split={"mode": "cross_source"})
    splits = make_splits(data, seed=0)
    made = texts(data, splits, weak=1000)["weak"]
    assert len(made) == 30
    assert not any("sum" in text for text in made)


def test_a_template_that_a_row_cannot_fill_is_named(tmp_path):
    data = files(tmp_path / "rows.jsonl")
    settings = PLAIN.model_copy(update={"templates": ["{{ metadata.numbers }}"]})
    with pytest.raises(DataError, match=r"corpus.templates: .*metadata.numbers.* failed: .*; a row has .*prompt"):
        texts(data, make_splits(data, seed=0), settings)
    with pytest.raises(DataError, match=r"corpus.templates: .*metadata.numbers.* failed"):
        corpus.check(data, settings)
    corpus.check(generated(), settings.model_copy(update={"templates": ["{{ metadata.direction }} {{ answer }}"]}))
    corpus.check(data, PLAIN)


def test_files_without_the_text_are_found_before_anything_starts(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text("")
    settings = PLAIN.model_copy(update={"paths": [str(path)]})
    with pytest.raises(DataError, match=r"own.jsonl"):
        corpus.check(generated(), settings)
    path.write_text('{"body": "x"}\n')
    with pytest.raises(DataError, match=r"corpus.text_column: text is no text column of .*own.jsonl"):
        corpus.check(generated(), settings)
    corpus.check(generated(), settings.model_copy(update={"text_column": "body"}))


def test_documents_become_answers_after_the_begin_token_and_are_cut_to_the_context():
    documents = ["0 1 2 3", "", "0 " * 50]
    tokenizer = tiny.train_tokenizer(documents * 9, 64)
    table = corpus.tokenize_documents(documents, tokenizer, context=20)
    assert table.schema == TOKENS_SCHEMA
    data = TokenData.from_table(table)
    assert [prompt.tolist() for prompt in data.prompt_ids] == [[1]] * 3
    assert [int(answer[-1]) for answer in data.answer_ids] == [2] * 3
    assert tokenizer.decode(data.answer_ids[0][:-1]) == "0 1 2 3"
    assert data.answer_ids[1].tolist() == [2]
    assert len(data.answer_ids[2]) + 1 == 20


def test_tokens_do_not_depend_on_the_batch_they_were_made_in(monkeypatch):
    documents = [f"{i} and {i + 1}" for i in range(30)]
    tokenizer = tiny.train_tokenizer(documents, 64)
    whole = corpus.tokenize_documents(documents, tokenizer, context=64)
    monkeypatch.setattr(corpus, "_BATCH", 7)
    assert corpus.tokenize_documents(documents, tokenizer, context=64).equals(whole)
