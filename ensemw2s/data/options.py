"""Multiple-choice questions: question, options and the key of the right one come in, prompt and answer go out.

Its own module because data sets write the same question in many ways, and a prompt must not tell them apart.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ensemw2s.config import MultipleChoice
from ensemw2s.errors import DataError

LETTERS = string.ascii_uppercase


@dataclass(frozen=True)
class Question:
    """A multiple-choice question.

    Attributes:
        text: The question.
        options: Texts of the options, in the order of the prompt.
        right: Place of the right one; None where it is not known.
    """

    text: str
    options: tuple[str, ...]
    right: int | None

    def prompt(self, style: str) -> str:
        """What is asked, with an option in each line unless they are compared by likelihood."""
        if style == "likelihood":
            return self.text
        marks = [f"{letter}." for letter in LETTERS] if style == "letter" else ["-"] * len(self.options)
        lines = [f"{mark} {' '.join(option.split())}" for mark, option in zip(marks, self.options, strict=False)]
        return "\n".join([self.text, *lines])

    def choices(self, style: str) -> list[str]:
        """What can be answered: letters, or the options' texts."""
        return list(LETTERS[: len(self.options)]) if style == "letter" else list(self.options)


def parted(value: object) -> tuple[object, object]:
    """Texts and labels of options, in any of the ways in which data sets write them; the labels are None without any.

    Args:
        value: A list of texts; `{"text": [...], "label": [...]}`; or a list of `{"text": ..., "label": ...}`.
    """
    if isinstance(value, Mapping):
        return value.get("text"), value.get("label")
    if isinstance(value, (list, tuple)) and value and all(isinstance(one, Mapping) for one in value):
        return [one.get("text") for one in value], [one.get("label") for one in value]
    return value, None


def make_question(
    text: str, options: Sequence[str], labels: Sequence[str] | None, key: str | None, wanted: MultipleChoice
) -> Question:
    """A question with its options in the order of the prompt.

    Args:
        text: The question.
        options: Texts of the options, in the source's order.
        labels: Their labels, if they have any.
        key: Which one is right: its label, its text, or its place (`A` or `1` is the first); None: not known.
        wanted: Whether and how the options are shuffled.

    Raises:
        DataError: Options are repeated, too few or too many, labels do not fit, or the key is that of no option. It
            does not say where the row comes from.
    """
    if not 2 <= len(options) <= len(LETTERS):
        raise DataError(f"a question needs 2 to {len(LETTERS)} options, this one has {len(options)}")
    if (twice := next((option for option in options if options.count(option) > 1), None)) is not None:
        raise DataError(f"the option {twice!r} occurs twice; correct the row, or leave it out by the source's where")
    if labels is not None and (len(labels) != len(options) or len(set(labels)) != len(labels)):
        raise DataError(f"{len(options)} options have the labels {list(labels)}; each needs one of its own")
    right = None if key is None else options[_place(options, labels, key)]
    shuffled = list(options)
    if wanted.shuffle_seed is not None:
        shuffled.sort(
            key=lambda option: hashlib.sha256(f"{wanted.shuffle_seed}\x1f{text}\x1f{option}".encode()).digest()
        )
    return Question(text, tuple(shuffled), None if right is None else shuffled.index(right))


def _place(options: Sequence[str], labels: Sequence[str] | None, key: str) -> int:
    """The place of the option that a key names: a label counts before a text, and a text before a place."""
    if labels is not None and key in labels:
        return labels.index(key)
    if key in options:
        return options.index(key)
    if labels is None:
        for names in (LETTERS, [str(n) for n in range(1, len(options) + 1)]):
            if key in list(names)[: len(options)]:
                return list(names).index(key)
    known = f"labels {list(labels)}" if labels is not None else f"options {list(options)}"
    raise DataError(f"the answer {key!r} is none of the {known}; columns.answer must name the right option")
