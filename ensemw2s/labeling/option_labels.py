"""Labels of multiple-choice questions: options that a voter has scored come in, rows of the labels contract go out.

The label is the option that the members find likeliest together. Its own module because nothing is decoded here: what
would be the agreement at a token is the agreement on the option.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from ensemw2s.config import DataConfig, LabelingConfig
from ensemw2s.ensemble.options import ScoredOptions, score_options
from ensemw2s.ensemble.voter import Loaded
from ensemw2s.errors import DataError, ModelError
from ensemw2s.labeling.parts import label_schema

Row = Mapping[str, object]


def label_questions(
    questions: Sequence[Row], loaded: Loaded, data: DataConfig, labeling: LabelingConfig
) -> tuple[pa.Table, list[dict[str, object]]]:
    """Labels questions by their likeliest options.

    Args:
        questions: `id`, `prompt` and `choices` of each.
        loaded: Who labels.
        data: How prompts and answers become tokens.
        labeling: Batch size, and whether distributions are kept.

    Returns:
        Labels (`label_schema`), and the questions that cannot be labelled with the `reason`.
    """
    scored, rejected = _scored(questions, loaded, data, labeling.batch_size)
    rows = [
        _row(question, options, np.asarray(loaded.model.weights, np.float64), labeling)
        for question, options in zip(questions, scored, strict=True)
        if options is not None
    ]
    return pa.Table.from_pylist(rows, schema=label_schema(labeling, margin=True)), rejected


def _scored(
    questions: Sequence[Row], loaded: Loaded, data: DataConfig, batch_size: int
) -> tuple[list[ScoredOptions | None], list[dict[str, object]]]:
    """The scored options of each question. Where that fails, halves are tried: an error is that of its question."""
    if not questions:
        return [], []
    prompts, options = [str(q["prompt"]) for q in questions], [q["choices"] for q in questions]
    try:
        return score_options(prompts, options, loaded, data, batch_size=batch_size), []  # type: ignore[arg-type]
    except (DataError, ModelError) as error:
        if len(questions) == 1:
            [one] = questions
            return [None], [{"id": one["id"], "prompt": one["prompt"], "reason": str(error)}]
    half = len(questions) // 2
    parts = [_scored(part, loaded, data, batch_size) for part in (questions[:half], questions[half:])]
    return parts[0][0] + parts[1][0], parts[0][1] + parts[1][1]


def _row(question: Row, scored: ScoredOptions, weights: np.ndarray, labeling: LabelingConfig) -> dict[str, object]:
    """A row of the labels contract."""
    totals, best = scored.values("answer"), scored.best("answer")
    shares = np.bincount(scored.members.argmax(axis=1), weights / weights.sum(), len(totals))
    agreement = float(min(shares[best], 1.0))
    entropy = float(-sum(share * math.log(share) for share in shares if share > 0))
    probabilities = np.exp(totals - totals.max())
    probabilities /= probabilities.sum()
    second = max((p for k, p in enumerate(probabilities) if k != best), default=0.0)
    tokens = scored.token_ids[best]
    row: dict[str, object] = {
        "id": question["id"],
        "prompt": question["prompt"],
        "answer": scored.texts[best],
        "token_ids": tokens,
        "logprob": float(totals[best]),
        "agreement": agreement,
        "vote_entropy": entropy,
        "n_tokens": len(tokens),
        "finish_reason": "stop",
        "token_agreement": [agreement] * len(tokens),
        "token_entropy": [entropy] * len(tokens),
        "margin": float(probabilities[best] - second),
        "consistency": 1.0,
    }
    if labeling.soft_top_k:
        row["top_tokens"], row["top_logprobs"] = _next_tokens(scored.token_ids, probabilities, best)
    return row


def _next_tokens(
    token_ids: list[list[int]], probabilities: np.ndarray, best: int
) -> tuple[list[list[int]], list[np.ndarray]]:
    """The distribution over options as one over tokens, at each place of the chosen option.

    A token there has the probability of all options that begin as the chosen one does up to it and go on with it.
    """
    tokens, logprobs = [], []
    for place in range(len(token_ids[best])):
        found: dict[int, float] = {}
        for ids, probability in zip(token_ids, probabilities, strict=True):
            if ids[:place] == token_ids[best][:place] and len(ids) > place:
                found[ids[place]] = found.get(ids[place], 0.0) + float(probability)
        likeliest = sorted(found, key=lambda token: -found[token])
        whole = sum(found.values())
        tokens.append(likeliest)
        logprobs.append(np.log([max(found[token] / whole, 1e-7) for token in likeliest]).astype("float16"))
    return tokens, logprobs
