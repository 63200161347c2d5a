"""How long examples are, in tokens: some rows of the source in, means out. The longest are the config's limits."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean

from ensemw2s.config import Config
from ensemw2s.data.columns import render_row
from ensemw2s.data.sources import iterate_rows
from ensemw2s.errors import ModelError

SAMPLE = 200
"""Rows that are looked at."""


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of an example.

    Attributes:
        prompt: Of its prompt.
        answer: Of its answer, and of a label.
        origin: Where they are from, in words.
    """

    prompt: float
    answer: float
    origin: str

    @property
    def whole(self) -> float:
        return self.prompt + self.answer


def lengths(config: Config, characters_a_token: float, prompt: int | None = None, answer: int | None = None) -> Lengths:
    """Mean lengths: those that are given, else of the first rows of the source.

    Args:
        config: The run; its first weak base has the tokenizer, if it is at hand.
        characters_a_token: Where it is not.
        prompt: Tokens of a prompt.
        answer: Tokens of an answer.

    Raises:
        DataError: If the source cannot be read, and not both are given.
    """
    if prompt is not None and answer is not None:
        return Lengths(prompt, answer, "as given")
    count, how = _counter(config, characters_a_token)
    source = config.data.source
    rows = itertools.islice(iterate_rows(source, part="easy", seed=0), SAMPLE)
    examples = [render_row(source.columns, row, answer_optional=True) for row in rows]
    around = len(config.data.prompt_template) - len("{prompt}")
    prompts = [count(" " * around + str(example["prompt"])) for example in examples]
    answers = [count(str(example["answer"])) + 1 for example in examples if example["answer"] is not None]
    return Lengths(
        prompt if prompt is not None else mean(prompts),
        answer if answer is not None else min(mean(answers or [1]), config.labeling.max_new_tokens),
        f"of the first {len(examples)} rows, {how}",
    )


def _counter(config: Config, characters_a_token: float) -> tuple[Callable[[str], float], str]:
    from ensemw2s.models.tokenizers import load_tokenizer

    model = config.models.weak[0]
    try:
        if model.is_tiny:
            raise ModelError("its tokenizer is made by the run")
        tokenizer = load_tokenizer(model.base, model.revision)
    except ModelError:
        return lambda text: len(text) / characters_a_token, f"at {characters_a_token:g} characters a token"
    return lambda text: float(len(tokenizer(text)["input_ids"])), f"by the tokenizer of {model.base}"
