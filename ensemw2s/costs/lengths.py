"""How long examples are, in tokens: some rows of the source in, means out. The longest are the config's limits."""

from __future__ import annotations

import itertools
from contextlib import suppress
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING

from ensemw2s.config import Config
from ensemw2s.data.columns import render_row
from ensemw2s.data.sources import iterate_rows
from ensemw2s.data.tokens import tokenize_prompts
from ensemw2s.errors import ModelError
from ensemw2s.models.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
        ModelError: If a chat template is asked for that the tokenizer does not have.
    """
    if prompt is not None and answer is not None:
        return Lengths(prompt, answer, "as given")
    source, template = config.data.source, config.data.prompt_template
    rows = itertools.islice(iterate_rows(source, part="easy", seed=0), SAMPLE)
    examples = [render_row(source.columns, row, answer_optional=True) for row in rows]
    prefix = "" if config.data.chat_template else config.data.answer_prefix
    texts = [str(example["prompt"]) for example in examples]
    answered = [f"{prefix}{example['answer']}" for example in examples if example["answer"] is not None]
    tokenizer = _tokenizer(config)
    if tokenizer is None:
        prompts = [len(template.replace("{prompt}", text)) / characters_a_token for text in texts]
        answers = [len(text) / characters_a_token + 1 for text in answered]
        how = f"at {characters_a_token:g} characters a token"
    else:
        prompts = [len(ids) for ids in tokenize_prompts(texts, tokenizer, config.data)]
        answers = [len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) + 1 for text in answered]
        how = f"by the tokenizer of {config.models.weak[0].base}"
    return Lengths(
        prompt if prompt is not None else mean(prompts),
        answer if answer is not None else min(mean(answers or [1]), config.labeling.max_new_tokens),
        f"of the first {len(examples)} rows, {how}",
    )


def _tokenizer(config: Config) -> PreTrainedTokenizerBase | None:
    """That of the first weak base; None if it is not at hand."""
    model = config.models.weak[0]
    if model.is_tiny:  # the run makes it
        return None
    with suppress(ModelError):
        return load_tokenizer(model.base, model.revision)
    return None
