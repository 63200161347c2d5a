"""Answers of models in, right or wrong of each system on each example out. Pure.

Its own module because a run's figures and a comparison of two runs must count the same answers as right.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from ensemw2s.config.systems import TABLE
from ensemw2s.data.answers import Key
from ensemw2s.evaluation import metrics as m
from ensemw2s.evaluation.chunks import OPTION, Rows
from ensemw2s.evaluation.voters import BASE, EXPERT

FIGURES = {
    "answer": "option_accuracy",
    "sum": "option_acc",
    "token": "option_acc_token",
    "byte": "option_acc_norm",
}
"""Measure of options (`ensemble.options.By`) → the field of `Metrics` that says how often its winner is right."""


def voters_of(system: str, answered: Collection[str], votes: Mapping[str, float]) -> list[str]:
    """The voters whose answers a system's figures follow from.

    Args:
        system: Name of the system.
        answered: Voters that answered.
        votes: Name of each expert with a vote → its weight.
    """
    if system in TABLE and TABLE[system].averages_bases:
        return [voter for voter in answered if voter.startswith(BASE)]
    if system in TABLE and TABLE[system].vote == "answers":
        return [f"{EXPERT}{expert}" for expert in votes]
    return [system]


def answers_of(
    system: str, answers: Mapping[str, Sequence[str]], votes: Mapping[str, float], key: Callable[[str], Key]
) -> list[Sequence[str]]:
    """What a system answers to n prompts: one list, or one for each of the bases that it averages.

    Args:
        system: Name of the system.
        answers: Voter → its n answers.
        votes: Name of each expert with a vote → its weight.
        key: What is compared of an answer.
    """
    given = [answers[voter] for voter in voters_of(system, answers, votes)]
    if system in TABLE and TABLE[system].vote == "answers":
        return [[answer for answer, _ in m.majority_vote(given, list(votes.values()), key)]]
    return given


def right(
    given: Sequence[Sequence[str]], truths: Sequence[str], key: Callable[[str], Key]
) -> m.FloatArray | m.BoolArray:
    """Right or not, for each example [n]; of several models the mean over them."""
    exact = [m.exact_match(answers, truths, key) for answers in given]
    return exact[0] if len(exact) == 1 else np.mean(exact, axis=0)


def options_right(rows: Rows, truths: Sequence[str], asked: m.BoolArray) -> dict[str, m.FloatArray]:
    """Figure of options (a field of `Metrics`) → right or not, for each example that has options.

    Args:
        rows: Columns of one voter.
        truths: n true answers.
        asked: `[n]`: which examples have options.
    """
    if not asked.any():
        return {}
    found = {FIGURES[by]: rows[column] for by, column in OPTION.items() if column in rows}
    return {
        figure: np.array([o == t for o, t in zip(options, truths, strict=True)], np.float64)[asked]
        for figure, options in found.items()
    }


def voted_options(voters: Sequence[Rows], weights: Sequence[float]) -> Rows:
    """The options that get the most votes: columns of one voter from those of several, None where there are none."""
    columns = [column for column in OPTION.values() if all(column in rows for rows in voters)]
    voted: Rows = {}
    for column in columns:
        given = [[option or "" for option in rows[column]] for rows in voters]
        voted[column] = [option or None for option, _ in m.majority_vote(given, weights)]
    return voted
