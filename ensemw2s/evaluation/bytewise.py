"""Evaluation of a voter of several tokenizers: the columns of `evaluator.evaluate`, where a token is a byte."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa

from ensemw2s.config import LabelingConfig
from ensemw2s.ensemble.bytewise.answers import ByteAnswer
from ensemw2s.ensemble.bytewise.prompts import Prompt
from ensemw2s.ensemble.bytewise.voter import ByteVoter, LoadedMixture
from ensemw2s.ensemble.requests import Generation
from ensemw2s.evaluation.chunks import Rows
from ensemw2s.evaluation.shown import shown_tokens
from ensemw2s.labeling.labeler import answer_text

SILENT = Generation([], *(np.zeros(0, np.float32),) * 2, np.zeros((0, 1), np.int64), np.zeros(0, np.float32), "length")
"""Stands for the answer to a prompt that no model can read: it is empty, and wrong."""


def evaluate_bytes(
    examples: pa.Table,
    loaded: LoadedMixture,
    voter: ByteVoter,
    labeling: LabelingConfig,
    *,
    decoded: bool,
    shown: int,
) -> Rows:
    """Answers and scores of one voter.

    Args:
        examples: Rows with answers (EXAMPLE_SCHEMA).
        loaded: Its models.
        voter: The same as a mixture.
        labeling: Longest answer.
        decoded: Decode, too; else only teacher forcing.
        shown: For so many first examples keep every byte with the votes of each tokenizer's models.

    Returns:
        Columns as of `evaluator.evaluate`, without those of single members. An answer that no model can spell has an
        infinite loss.
    """
    prompts = voter.prompts(examples["prompt"].to_pylist())
    generations: list[Generation] = []
    began = time.monotonic()
    if decoded:
        found = voter.generate(prompts, max_new_tokens=labeling.max_new_tokens)
        generations = [one if isinstance(one, Generation) else SILENT for one in found]
    seconds = time.monotonic() - began
    truths = [text or "" for text in examples["answer"].to_pylist()]
    scored = voter.score(prompts, truths)
    sizes = [len((voter.prefix + text).encode()) + 1 for text in truths]
    right = [int((a.likeliest == a.symbols).sum()) if isinstance(a, ByteAnswer) else 0 for a in scored]
    columns: Rows = {
        "n_tokens": sizes,
        "token_correct": right,
        "nll": [-a.logprob if isinstance(a, ByteAnswer) else float("inf") for a in scored],
        "forced": [hits == size for hits, size in zip(right, sizes, strict=True)],
        "option": _options(examples, prompts, voter),
    }
    if decoded:
        ends, read = loaded.ends(voter.data), loaded.tokenizer.decode
        shares, names = voter.mixture.shares.tolist(), [voice.name for voice in voter.mixture.voices]
        columns |= {
            "answer": [answer_text(g, loaded, ends) for g in generations],
            "cut": [g.finish_reason == "length" for g in generations],
            "n_decoded": [len(g.token_ids) * loaded.members for g in generations],
            "agreement": [float(g.agreement.mean(dtype="float64")) if g.token_ids else 0.0 for g in generations],
            "seconds": [seconds / len(generations)] * len(generations),
            "tokens": [shown_tokens(g, names, shares, read) if i < shown else None for i, g in enumerate(generations)],
        }
    return columns


def _options(examples: pa.Table, prompts: list[list[Prompt]], voter: ByteVoter) -> list[str | None]:
    """Of each multiple-choice question the option with the highest log-probability, the first of equals."""
    rows = [(i, choice) for i, options in enumerate(examples["choices"].to_pylist()) for choice in options or []]
    chosen: list[str | None] = [None] * len(examples)
    best = [-np.inf] * len(examples)
    scored = voter.score([prompts[i] for i, _ in rows], [choice for _, choice in rows])
    for (i, choice), one in zip(rows, scored, strict=True):
        if isinstance(one, ByteAnswer) and one.logprob > best[i]:
            best[i], chosen[i] = one.logprob, choice
    return chosen
