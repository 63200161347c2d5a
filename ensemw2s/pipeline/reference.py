"""Difficulty where no rating exists: the loss of a reference model that was trained on the other folds of the data.

Examples go in; one loss per example comes out: its mean negative log-likelihood, in nats per answer token. Each example
is scored by a model that has not seen it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ensemw2s.config import TINY_FAMILY, Recipe
from ensemw2s.data.examples import derive_seed
from ensemw2s.data.splits import folds
from ensemw2s.data.tokens import tokenize_examples
from ensemw2s.models import tiny
from ensemw2s.models.tokenizers import load_tokenizer
from ensemw2s.storage import remote
from ensemw2s.storage.store import Description
from ensemw2s.training.spec import Start, TrainSpec

if TYPE_CHECKING:
    from ensemw2s.pipeline.context import Context


def reference_losses(context: Context, table: pa.Table) -> NDArray[np.float64]:
    """Rates examples by k-fold training of `data.split.reference`.

    Args:
        context: The run; its cluster trains and scores.
        table: Examples with answers (EXAMPLE_SCHEMA).

    Returns:
        Loss of each example, [n].
    """
    scratch = context.graph.root / ".reference"
    remote.remove(scratch)
    scratch.mkdir(parents=True)
    try:
        return _losses(context, table, scratch)
    finally:
        remote.remove(scratch)


def _losses(context: Context, table: pa.Table, scratch: Path) -> NDArray[np.float64]:
    from ensemw2s.evaluation.evaluate import evaluate_all
    from ensemw2s.evaluation.voters import EvaluationWork, VoterGroup
    from ensemw2s.pipeline.systems import one

    config, reference = context.config, context.config.data.split.reference
    fold = folds(len(table), reference.folds, derive_seed(config.seed, "folds"))
    start = _start(context, table, scratch)
    tokenizer = load_tokenizer(start.path)
    tokens = tokenize_examples(table, tokenizer, config.data)
    recipe = Recipe(epochs=reference.epochs, learning_rate=reference.learning_rate, batch_size=config.expert.batch_size)
    specs, work = [], []
    for k in range(reference.folds):
        pq.write_table(tokens.filter(pa.array(fold != k)), scratch / f"others-{k}.parquet")
        pq.write_table(table.filter(pa.array(fold == k)), scratch / f"fold-{k}.parquet")
        output = str((scratch / f"model-{k}").resolve())
        specs.append(
            TrainSpec(
                name=f"reference/{k}",
                output=output,
                fingerprint=Description(stage=f"reference/{k}"),
                start=start,
                tokens=[str((scratch / f"others-{k}.parquet").resolve())],
                recipe=recipe,
                seed=derive_seed(config.seed, "reference"),
                zero_stage=config.training.zero_stage,
                precision=config.training.precision,
            )
        )
        group = VoterGroup(name=f"reference-{k}", voters=(one("reference", output),))
        work.append(EvaluationWork(str(k), scratch / f"fold-{k}.parquet", group, decoded=False))
    remote.push(scratch)
    context.lanes.train(specs)
    columns = evaluate_all(work, data=config.data, labeling=config.labeling, pool=context.pool, shown=0)
    losses = np.zeros(len(table))
    for k in range(reference.folds):
        rows = columns[str(k)]["reference"]
        losses[fold == k] = np.array(rows["nll"]) / np.array(rows["n_tokens"])
    return losses


def _start(context: Context, table: pa.Table, scratch: Path) -> Start:
    """The reference model before training; a tiny one is not pre-trained, as the corpus would depend on the splits."""
    name = context.config.data.split.reference.model
    if name not in TINY_FAMILY:
        place = remote.local(name)
        return Start(path=str(place.resolve()) if place.exists() or remote.uri(place) else name)
    prefix = context.config.data.answer_prefix
    texts = [f"{row['prompt']}{prefix}{row['answer']}" for row in table.select(["prompt", "answer"]).to_pylist()]
    around = context.config.data.prompt_template.replace("{prompt}", "")
    tokenizer = tiny.train_tokenizer(texts, context.config.models.pretraining.vocabulary, also=around)
    tokenizer.save_pretrained(scratch / "tokenizer")
    return Start(path=str((scratch / "tokenizer").resolve()), tiny=name)
