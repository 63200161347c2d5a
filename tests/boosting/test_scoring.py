import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ensemw2s.boosting.scoring import LikelihoodScorer, Reading, Scorer
from ensemw2s.cluster.pool import chunks
from ensemw2s.data.tokens import TOKENS_SCHEMA
from ensemw2s.models import loading, tiny

READING = Reading(batch_size=2, chunk_size=3, precision="fp32")
SIZES = [(3, 2), (9, 1), (1, 6), (4, 4), (2, 3)]
"""Tokens of prompt and answer of each example."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two models, and a token table."""
    root = tmp_path_factory.mktemp("scoring")
    tokenizer = tiny.train_tokenizer(["0 1 2 3 4 5 6 7 8 9 sort up"] * 9, 64)
    for seed in (0, 1):
        loading.save_trained(tiny.create_tiny("tiny-weak", tokenizer, seed), tokenizer, root / str(seed))
    rng = np.random.default_rng(0)
    rows = [
        {"id": str(i), "prompt_ids": rng.integers(1, 30, p).tolist(), "answer_ids": rng.integers(1, 30, a).tolist()}
        for i, (p, a) in enumerate(SIZES)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=TOKENS_SCHEMA), root / "tokens.parquet")
    return root


@torch.no_grad()
def naive(folder, rows) -> list[int]:
    """The likeliest token at every answer position, each prefix read anew and alone."""
    model, found = loading.load_causal_lm(folder), []
    for row in rows:
        tokens = list(row["prompt_ids"])
        for token in row["answer_ids"]:
            found.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
            tokens.append(token)
    return found


def test_each_models_choice_at_every_answer_token_in_the_tables_order(place):
    score = Scorer((str(place / "0"), str(place / "1")), READING).open()
    rows = pq.read_table(place / "tokens.parquet").to_pylist()
    parts = {}
    for chunk in reversed(chunks(place / "tokens.parquet", 3)):
        found = score(chunk)
        assert found.rows == chunk.rows
        assert found.tokens.dtype == np.int32
        parts[found.start] = found.tokens
    tokens = np.concatenate([parts[0], parts[3]], axis=1)
    assert tokens.tolist() == [naive(place / "0", rows), naive(place / "1", rows)]


def test_likelihoods_of_an_ensemble_and_its_members_at_temperatures(place):
    models = (str(place / "0"), str(place / "1"))
    score = LikelihoodScorer(models, (1.0, 3.0), (2.0, 1.0), "probability", (0.5, 1.0), READING).open()
    rows = pq.read_table(place / "tokens.parquet").to_pylist()
    [chunk] = chunks(place / "tokens.parquet", 9)
    found = score(chunk)
    alone = np.stack([log_probs(models[0], rows, 2.0), log_probs(models[1], rows, 1.0)])
    np.testing.assert_allclose(found.each, alone, atol=1e-4)
    together = np.log(0.25 * np.exp(alone[0]) + 0.75 * np.exp(alone[1]))
    np.testing.assert_allclose(found.together, together, atol=1e-4)
    assert found.scaled.shape == (2, 2, len(rows))
    ends = np.cumsum([answer for _, answer in SIZES])
    for place_, t in enumerate((0.5, 1.0)):  # on top of its own
        expected = -np.add.reduceat(log_probs(models[0], rows, 2.0 * t), [0, *ends[:-1]])
        np.testing.assert_allclose(found.scaled[place_, 0], expected, rtol=1e-4)


@torch.no_grad()
def log_probs(folder, rows, temperature) -> np.ndarray:
    """Of the true token at every answer position, each prefix read anew and alone."""
    model, found = loading.load_causal_lm(folder), []
    for row in rows:
        tokens = list(row["prompt_ids"])
        for token in row["answer_ids"]:
            logits = model(torch.tensor([tokens]), use_cache=False).logits[0, -1] / temperature
            found.append(float(logits.log_softmax(-1)[token]))
            tokens.append(token)
    return np.array(found)
