import copy
import json
import shutil
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from ensemw2s.errors import ModelError
from ensemw2s.models import tiny, tokenizers
from ensemw2s.models.tokenizers import check_same_tokenizer, load_tokenizer, tokenizer_hash

TEXT = "sort these numbers in ascending order please 0 1 2 3 4 5 6 7 8 9"


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny.train_tokenizer([TEXT] * 9, 64)


@pytest.fixture
def folder(tokenizer, tmp_path) -> Path:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def without(folder: Path, *keys: str) -> None:
    """Removes special tokens from a saved tokenizer's config."""
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for key in keys:
        config.pop(key)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def test_a_saved_tokenizer_is_the_same_tokenizer(tokenizer, folder):
    loaded = load_tokenizer(folder)
    assert loaded.encode(TEXT) == tokenizer.encode(TEXT)
    assert tokenizer_hash(loaded) == tokenizer_hash(tokenizer)
    check_same_tokenizer([("made", tokenizer), ("loaded", loaded)])


def test_the_hash_does_not_depend_on_how_the_tokenizer_was_used(tokenizer):
    before = tokenizer_hash(tokenizer)
    tokenizer.padding_side = "left"
    tokenizer(["sort", "sort these numbers"], padding="max_length", max_length=5, truncation=True)
    tokenizer.chat_template = "{{ messages }}"
    assert tokenizer_hash(tokenizer) == before


def test_a_tokenizer_without_padding_token_pads_with_its_end_token(folder, tokenizer):
    without(folder, "pad_token")
    loaded = load_tokenizer(folder)
    assert loaded.pad_token_id == loaded.eos_token_id == 2
    assert tokenizer_hash(loaded) == tokenizer_hash(tokenizer)


def test_a_tokenizer_without_end_token_is_refused(folder):
    without(folder, "eos_token")
    with pytest.raises(ModelError, match="has no end-of-sequence token"):
        load_tokenizer(folder)


def test_a_member_of_an_ensemble_says_where_its_tokenizer_is(folder, tmp_path):
    member = tmp_path / "ensemble/members/round-1-expert-0"
    member.mkdir(parents=True)
    shutil.copytree(folder, tmp_path / "ensemble/tokenizer")
    with pytest.raises(ModelError, match=r"this is a member of an ensemble; .* copy the files of .*ensemble/tokenizer"):
        load_tokenizer(member)


def test_a_folder_without_or_with_a_damaged_tokenizer_is_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"empty holds no tokenizer; expected one of tokenizer.json"):
        load_tokenizer(tmp_path / "empty")
    (folder / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(ModelError, match=r"the tokenizer of .* cannot be loaded"):
        load_tokenizer(folder)


def test_tokenizers_that_differ_are_named_with_the_first_difference(tokenizer, folder):
    other = tiny.train_tokenizer(["quite another text"] * 9, 64)
    with pytest.raises(ModelError, match=r"b and a have different tokenizers: \d+ against \d+ tokens"):
        check_same_tokenizer([("a", tokenizer), ("a again", tokenizer), ("b", other)])
    tree = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tree["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(ModelError, match=r"different tokenizers: token \d+ is '[ab]' against '[ab]'"):
        check_same_tokenizer([("a", tokenizer), ("b", load_tokenizer(folder))])


def test_another_end_token_is_another_tokenizer(tokenizer):
    other = copy.deepcopy(tokenizer)
    other.eos_token = "<bos>"
    assert tokenizer_hash(other) != tokenizer_hash(tokenizer)
    with pytest.raises(ModelError, match="the end-of-sequence token is 1 against 2"):
        check_same_tokenizer([("a", tokenizer), ("b", other)])


def test_another_way_to_split_text_is_another_tokenizer(folder, tokenizer, tmp_path):
    changed = Path(shutil.copytree(folder, tmp_path / "changed"))
    tree = json.loads((changed / "tokenizer.json").read_text())
    tree["pre_tokenizer"]["add_prefix_space"] = True
    (changed / "tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(ModelError, match="same vocabulary, but they split text differently"):
        check_same_tokenizer([("a", tokenizer), ("b", load_tokenizer(changed))])


@pytest.mark.parametrize(
    ("library", "content"),
    [("sentencepiece", b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02"), ("tiktoken", b"YQ== 0\nYg== 1\n")],
)
def test_a_tokenizer_whose_library_is_not_here_names_its_package(tmp_path, monkeypatch, library, content):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "eos_token": "</s>"}')
    (tmp_path / "tokenizer.model").write_bytes(content)
    for name in ("sentencepiece", "tiktoken"):  # absent for us and for transformers
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(tokenizers, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match=f"needs a package that is not installed: pip install {library}$"):
        load_tokenizer(tmp_path)
