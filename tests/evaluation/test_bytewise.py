"""Voters of several tokenizers have the columns that figures are made of."""

import numpy as np
import pyarrow as pa
import pytest

from ensemw2s.config import DataConfig, FilesSource, LabelingConfig, SplitConfig
from ensemw2s.ensemble.bytewise.mixture import VoiceModel
from ensemw2s.ensemble.bytewise.voter import ByteVoter, LoadedMixture
from ensemw2s.ensemble.model import EnsembleForCausalLM
from ensemw2s.evaluation.bytewise import evaluate_bytes
from ensemw2s.models import tiny

DATA = DataConfig(source=FilesSource(paths=["-"]), split=SplitConfig(mode="random"))


@pytest.fixture(scope="module")
def loaded() -> LoadedMixture:
    text = ["sort 11 3 = 3 11", "sort 14 9 3 = 3 9 14"] * 3
    tokenizers = [tiny.train_tokenizer(text, size) for size in (64, 21)]
    models = [tiny.create_tiny("tiny-weak", tokenizer, seed).eval() for seed, tokenizer in enumerate(tokenizers)]
    pairs = zip(models, tokenizers, strict=True)
    return LoadedMixture(tuple(VoiceModel(EnsembleForCausalLM([m], [1.0]), t, 1.0) for m, t in pairs))


def test_a_byte_is_a_token_and_an_option_is_chosen(loaded):
    examples = pa.table(
        {"prompt": ["sort 11 3 =", "sort 14 ="], "answer": ["3 11", "14"], "choices": [["3 11", "11 3"], None]}
    )
    labeling = LabelingConfig(max_new_tokens=2)
    voter = ByteVoter(loaded, DATA, texts=2)
    columns = evaluate_bytes(examples, loaded, voter, labeling, decoded=True, shown=1)

    assert columns["n_tokens"] == [len(DATA.answer_prefix) + size + 1 for size in (4, 2)]
    assert all(0 <= right <= n for right, n in zip(columns["token_correct"], columns["n_tokens"], strict=True))
    assert np.isfinite(columns["nll"]).all()
    assert columns["option"][0] in ("3 11", "11 3")
    assert columns["option"][1] is None
    assert [tokens is None for tokens in columns["tokens"]] == [False, True]
    assert {len(values) for values in columns.values()} == {2}


def test_an_answer_that_no_model_can_spell_is_wrong_with_an_infinite_loss(loaded):
    examples = pa.table(
        {
            "prompt": ["sort 11 3 ="] * 2,
            "answer": ["3 11", "~"],
            "choices": pa.array([None, None], pa.list_(pa.string())),
        }
    )
    voter = ByteVoter(loaded, DATA, texts=2)
    columns = evaluate_bytes(examples, loaded, voter, LabelingConfig(), decoded=False, shown=0)

    assert np.isfinite(columns["nll"]).tolist() == [True, False]
    assert columns["forced"][1] is False
    assert "answer" not in columns
