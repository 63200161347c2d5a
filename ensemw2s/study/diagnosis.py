"""How the errors of an ensemble's members go together: predictions under teacher forcing in, a few figures out.

Pure. A vote can only repair an error that not all members make, so these figures are to be held against its gain.
"""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ensemw2s.evaluation.voters import EXPERT
from ensemw2s.study.row import MemberErrors, WrongAnswers


def diagnose(answers: list[list[int]], members: list[list[list[int]]]) -> MemberErrors:
    """What members have in common.

    Args:
        answers: Of each example the n tokens of its true answer.
        members: Of each example the tokens that every member finds likeliest, `[members][n]`.
    """
    truth = np.concatenate([np.asarray(answer) for answer in answers])
    said = np.concatenate([np.asarray(each) for each in members], axis=1)
    wrong = said != truth
    pairs = list(itertools.combinations(range(len(said)), 2))
    both = np.array([np.mean(wrong[a] & wrong[b]) for a, b in pairs])
    same = np.array([np.mean(wrong[a] & wrong[b] & (said[a] == said[b])) for a, b in pairs])
    bounds = np.cumsum([len(answer) for answer in answers])[:-1]
    exact = np.array([[not part.any() for part in np.split(row, bounds)] for row in wrong])
    return MemberErrors(
        error_correlation=_correlation(wrong, pairs),
        both_wrong=float(both.mean()) if pairs else None,
        same_wrong=float(same.sum() / both.sum()) if both.sum() else None,
        all_same_wrong=float(np.mean(wrong[0] & (said == said[0]).all(axis=0))),
        member_token_accuracy=float(1 - wrong.mean()),
        member_exact_match=float(exact.mean()),
    )


def _correlation(wrong: NDArray[np.bool_], pairs: list[tuple[int, int]]) -> float | None:
    """Mean correlation over the pairs whose members both have tokens right and wrong."""
    errors = wrong.astype(np.float64)
    centred = errors - errors.mean(axis=1, keepdims=True)
    spread = errors.std(axis=1)
    found = [
        float(np.mean(centred[a] * centred[b]) / (spread[a] * spread[b]))
        for a, b in pairs
        if spread[a] > 0 and spread[b] > 0
    ]
    return float(np.mean(found)) if found else None


def of_table(forced: pa.Table) -> dict[tuple[str, str], MemberErrors]:
    """`diagnose` for every voter and split of a run's forced.parquet."""
    found = {}
    keys = {(row["voter"], row["split"]) for row in forced.select(["voter", "split"]).to_pylist()}
    rows = forced.to_pylist()
    for voter, split in sorted(keys):
        own = [row for row in rows if (row["voter"], row["split"]) == (voter, split)]
        found[voter, split] = diagnose([row["answer_ids"] for row in own], [row["member_ids"] for row in own])
    return found


def of_answers(answers: pa.Table) -> dict[str, WrongAnswers]:
    """How often boosted experts agree on a wrong answer, each decoding alone.

    Args:
        answers: A run's answers.parquet; the experts are in it where sequence_vote was evaluated.

    Returns:
        Split → how often they agree. Splits without two experts are left out.
    """
    given: dict[str, dict[str, list[str]]] = {}
    truths: dict[str, list[str]] = {}
    for row in answers.to_pylist():
        if row["voter"].startswith(EXPERT):
            own = given.setdefault(row["split"], {})
            own.setdefault(row["voter"], []).append(row["answer"].strip())
            if len(own) == 1:
                truths.setdefault(row["split"], []).append(row["truth"].strip())
    found = {}
    for split, voters in given.items():
        said, truth = np.array(list(voters.values())), np.array(truths[split])
        if len(said) < 2:
            continue
        wrong = said != truth
        pairs = list(itertools.combinations(range(len(said)), 2))
        both = sum(int((wrong[a] & wrong[b]).sum()) for a, b in pairs)
        same = sum(int((wrong[a] & wrong[b] & (said[a] == said[b])).sum()) for a, b in pairs)
        found[split] = WrongAnswers(
            same_wrong_answer=same / both if both else None,
            all_same_wrong_answer=float(np.mean(wrong[0] & (said == said[0]).all(axis=0))),
        )
    return found
