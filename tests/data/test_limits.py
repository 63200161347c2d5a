import json

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ensemw2s.config import DataConfig, FilesSource
from ensemw2s.data.limits import RowReader, RunCheck, lost
from ensemw2s.data.splits import make_splits
from ensemw2s.errors import DataError

SIZES = {"easy_train": 4, "easy_validation": 2, "id_test": 2, "hard_unlabelled": 4, "ood_test": 2}


def tokenizer(alphabet: str = "0123456789abc ", lower: bool = False) -> PreTrainedTokenizerFast:
    """One token a character."""
    pieces = [piece for piece, _ in pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(alphabet)]
    known = ["<pad>", "<eos>", "<unk>", *dict.fromkeys("".join(pieces))]
    raw = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(known)}, merges=[], unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    if lower:
        raw.normalizer = normalizers.Lowercase()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", unk_token="<unk>", pad_token="<pad>")


def config(tmp_path, rows, **fields) -> DataConfig:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = FilesSource(paths=[str(path)], columns={"difficulty": "level"})
    split = {"difficulty_from": "column", "easy_max": 0}
    return DataConfig(source=source, split=split, sizes=SIZES, **fields)


def rows(n: int = 20) -> list[dict]:
    return [{"prompt": f"a {i}", "answer": f"{i}", "level": i % 2} for i in range(n)]


def check(data: DataConfig, *, context: int | None = None, **made) -> RunCheck:
    return RunCheck((RowReader("m", tokenizer(**made), context),), data)


def test_rows_that_fit_are_no_business_of_the_check(tmp_path):
    data = config(tmp_path, rows())
    splits = make_splits(data, seed=0, check=check(data, context=9))
    assert splits.easy_train.equals(make_splits(data, seed=0).easy_train)
    assert not splits.dropped


@pytest.mark.parametrize(
    ("row", "context", "message"),
    [
        ({"prompt": "a" * 12, "answer": "1"}, None, "the prompt has 12 tokens of m, data.max_prompt_tokens allows 9"),
        ({"prompt": "a", "answer": "1" * 9}, None, "the answer has 11 tokens of m, data.max_answer_tokens allows 10"),
        ({"prompt": "a" * 8, "answer": "1" * 5}, 14, "prompt and answer have 15 tokens, m takes 14"),
    ],
)
def test_a_row_that_is_too_long_is_named_or_dropped_and_counted(tmp_path, row, context, message):
    limits = {"max_prompt_tokens": 9, "max_answer_tokens": 10}
    data = config(tmp_path, [*rows(), row | {"level": 1}], **limits)
    with pytest.raises(DataError, match=f"rows.jsonl row 21: {message}.*data.too_long: drop leaves such rows out"):
        make_splits(data, seed=0, check=check(data, context=context))
    drops = data.model_copy(update={"too_long": "drop"})
    splits = make_splits(drops, seed=0, check=check(drops, context=context))
    assert splits.dropped.too_long == 1
    assert splits.dropped.sentences() == ["1 row is dropped for being too long (data.too_long)."]


def test_text_that_a_tokenizer_cannot_give_back_is_named_with_the_character_or_dropped(tmp_path):
    data = config(tmp_path, [*rows(), {"prompt": "a\nb", "answer": "1", "level": 0}])
    with pytest.raises(
        DataError, match=r"row 21: the prompt has the character '\\n' at place 2, which the tokenizer of m"
    ):
        make_splits(data, seed=0, check=check(data))
    drops = data.model_copy(update={"unreadable": "drop"})
    assert make_splits(drops, seed=0, check=check(drops)).dropped.unreadable == 1


def test_an_answer_must_come_back_as_it_is_and_a_prompt_may_be_normalised():
    lower = tokenizer(lower=True)
    assert lost("A b", lower, answer=False) is None
    assert lost("a B", lower, answer=True) == "text that comes back as 'a b' (from character 3 on)"
    assert lost("a b", lower, answer=True) is None


def test_of_a_tokenizer_that_is_not_trained_yet_bytes_count_and_only_drop(tmp_path):
    data = config(tmp_path, [*rows(), {"prompt": "é" * 20, "answer": "1", "level": 0}], max_prompt_tokens=30)
    tiny = (RowReader("tiny-weak", None, 512),)
    assert not make_splits(data, seed=0, check=RunCheck(tiny, data)).dropped
    drops = data.model_copy(update={"too_long": "drop"})
    assert make_splits(drops, seed=0, check=RunCheck(tiny, drops)).dropped.too_long == 1


def test_the_longest_option_counts_as_an_answer(tmp_path):
    data = config(tmp_path, rows(), max_answer_tokens=4)
    wanted = {"id": "1", "prompt": "1", "answer": "2", "difficulty": None, "choices": ["2", "2 3 4 5"]}
    with pytest.raises(DataError, match="the answer has"):
        check(data)("row 1", wanted)
