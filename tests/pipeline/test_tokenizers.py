"""Which weak bases share a tokenizer, and that runs in which all do are the same stages as ever."""

import pytest

from ensemw2s.config import parse_config
from ensemw2s.pipeline.build import build_graph
from ensemw2s.pipeline.tokenizers import tokenizer_numbers


@pytest.fixture
def make(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    data = {"source": {"kind": "files", "paths": [str(tmp_path / "rows.jsonl")]}, "split": {"mode": "random"}}

    def config(*weak):
        models = {"weak": [{"base": "tiny-weak", **own} for own in weak], "strong": {"base": "tiny-strong"}}
        return parse_config({"name": "a", "storage": str(tmp_path), "data": data, "models": models})

    return config


def test_tiny_bases_share_the_familys_tokenizer_unless_they_have_their_own(make):
    assert tokenizer_numbers(make({}, {"pretraining_seed": 1})) == (0, 0)
    assert tokenizer_numbers(make({}, {"vocabulary": 48}, {}, {"vocabulary": 48}, {"vocabulary": 40})) == (
        0,
        1,
        0,
        1,
        2,
    )


def test_a_tokenizer_of_its_own_changes_text_base_and_tokens_and_leaves_the_data(make):
    plain, mixed = build_graph(make({}, {"pretraining_seed": 1})), build_graph(make({}, {"vocabulary": 48}))
    assert not plain.mixed
    assert mixed.mixed
    assert mixed.data.fingerprint == plain.data.fingerprint
    assert mixed.corpus.stage.fingerprint != plain.corpus.stage.fingerprint
    assert mixed.tokens.fingerprint != plain.tokens.fingerprint
    assert plain.tokens.settings == {}
    assert plain.tokens.inputs == (plain.data, plain.weak[0].stage)
    assert [mixed.easy("easy_train", base).name for base in mixed.weak] == [
        "easy_train.parquet",
        "easy_train-1.parquet",
    ]
