"""A small model, a token table and a round's error mask on disk: what real training specs are made of."""

import os

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ensemw2s.boosting.masks import RoundWeights, write_masks
from ensemw2s.config import Recipe
from ensemw2s.data.tokens import TOKENS_SCHEMA
from ensemw2s.models import loading, tiny
from ensemw2s.training.spec import Start, TrainSpec

VOCABULARY = 64
EOS = 2


@dataclass(frozen=True)
class Workshop:
    """Files that specs name.

    Attributes:
        root: Folder of all of them.
        base: A tiny model with its tokenizer.
        table: 21 examples, prompts of 2-9 tokens and answers of 1-6.
        validation: The first 10 of them.
        weights: Token weights of a second round: tokens of `mask` weigh exp(1.2) times as much as others.
    """

    root: Path
    base: Path
    table: Path
    validation: Path
    weights: RoundWeights

    def spec(self, name: str, *, recipe: dict[str, Any] | None = None, **fields: Any) -> TrainSpec:
        """A short training: 2 epochs of 3 steps, the last of 5 examples."""
        settings = {"epochs": 2, "batch_size": 8, "learning_rate": 3e-3, "weight_decay": 0.01, **(recipe or {})}
        defaults: dict[str, Any] = {
            "output": str(self.root / name),
            "fingerprint": {"stage": name, "settings": {}, "inputs": {}},
            "start": Start(path=str(self.base)),
            "tokens": [str(self.table)],
            "weights": self.weights,
            "seed": 3,
            "precision": "fp32",
        }
        return TrainSpec(name=name, recipe=Recipe(**settings), **(defaults | fields))


def random_examples(n: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {
            "id": f"e{i}",
            "prompt_ids": [1, *rng.integers(4, VOCABULARY, rng.integers(1, 9)).tolist()],
            "answer_ids": [*rng.integers(4, VOCABULARY, rng.integers(0, 6)).tolist(), EOS],
        }
        for i in range(n)
    ]


@pytest.fixture(scope="module", autouse=True)
def _process_group(quiet_process: None) -> None:
    """So that the next module can train."""


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    root = tmp_path_factory.mktemp("workshop")
    text = "sort these numbers in ascending order please 0 1 2 3 4 5 6 7 8 9"
    tokenizer = tiny.train_tokenizer([text] * 9, VOCABULARY)
    assert (len(tokenizer), tokenizer.eos_token_id) == (VOCABULARY, EOS)
    loading.save_trained(tiny.create_tiny("tiny-weak", tokenizer, 0), tokenizer, root / "base")
    rows = random_examples(21)
    table = pa.Table.from_pylist(rows, schema=TOKENS_SCHEMA)
    pq.write_table(table, root / "train.parquet")
    pq.write_table(table.slice(0, 10), root / "validation.parquet")
    lengths = [len(row["answer_ids"]) for row in rows]
    mask = np.random.default_rng(1).random(sum(lengths)) < 0.4
    write_masks(root / "errors.parquet", [row["id"] for row in rows], lengths, {"round": mask})
    weights = RoundWeights(masks=[(str(root / "errors.parquet"), 2.4)], shrinkage=0.5)
    return Workshop(root, root / "base", root / "train.parquet", root / "validation.parquet", weights)


@pytest.fixture(scope="session")
def token_table(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Writes (prompt, answer) pairs of token ids as a table, with more columns if given."""
    folder = tmp_path_factory.mktemp("tables")

    def write(name: str, *pairs: tuple[list[int], list[int]], **columns: Any) -> str:
        rows = [{"id": f"{name}-{i}", "prompt_ids": p, "answer_ids": a} for i, (p, a) in enumerate(pairs)]
        table = pa.Table.from_pylist(rows, schema=TOKENS_SCHEMA)
        for column, values in columns.items():
            table = table.append_column(column, values)
        pq.write_table(table, folder / f"{name}.parquet")
        return str(folder / f"{name}.parquet")

    return write
