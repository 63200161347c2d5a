"""Structured answers: a schema, a regular expression, choices or a grammar come in, a guide for one answer goes out.

llguidance says which tokens may come next. Made on a thread of its own, because its tables of the vocabulary take
a second, and grammars may take some time, too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import cast

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ensemw2s.errors import ModelError
from ensemw2s.serving.exchange import Form


class Grammar:
    """A guide of the engine, see `shaping.Guide`."""

    def __init__(self, matcher: LLMatcher, ends: Sequence[int], never: Sequence[int], vocabulary: int) -> None:
        """Args: what knows the grammar; end tokens; special tokens that no text has; the vocabulary's size."""
        self._matcher, self._ends, self._never, self._vocabulary = matcher, list(ends), list(never), vocabulary

    def allowed(self) -> torch.Tensor:
        """`[vocabulary]`, bool; only end tokens once the answer is whole.

        Raises:
            ModelError: If the grammar has become too complex to go on.
        """
        if self._matcher.is_error():
            raise ModelError(f"the answer cannot go on: {first_line(self._matcher.get_error())}")
        if self._matcher.is_stopped():
            found = torch.zeros(self._vocabulary, dtype=torch.bool)
            found[self._ends] = True
            return found
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        found = torch.from_numpy(np.unpackbits(bits, bitorder="little").astype(bool))
        found[self._never] = False
        return found

    def take(self, token: int) -> None:
        """The next token."""
        if token not in self._ends:
            self._matcher.consume_token(token)


class Guides:
    """Makes guides for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, ends: Sequence[int]) -> None:
        self._tokenizer, self._vocabulary, self._ends = tokenizer, vocabulary, [end for end in ends if end < vocabulary]

    @cached_property
    def _tables(self) -> LLTokenizer:
        tokenizer = cast("PreTrainedTokenizerFast", self._tokenizer)  # it refuses others itself
        return from_tokenizer(tokenizer, n_vocab=self._vocabulary, eos_token=self._ends)

    def make(self, form: Form) -> Grammar:
        """A guide for one answer.

        Raises:
            ModelError: If the form is none, or too complex.
        """
        try:
            grammar = _grammar(form)
            matcher = LLMatcher(self._tables, grammar, log_level=0)
        except ValueError as error:
            raise ModelError(f"the {form.kind} cannot be used: {first_line(str(error))}") from error
        if matcher.is_error():
            raise ModelError(f"the {form.kind} cannot be used: {first_line(matcher.get_error())}")
        special = set(self._tokenizer.all_special_ids) - set(self._ends)
        never = [token for token in special if token < self._vocabulary]
        return Grammar(matcher, self._ends, never, self._vocabulary)


def _grammar(form: Form) -> str:
    if form.kind == "JSON schema":
        return LLMatcher.grammar_from_json_schema(form.text, overrides={"whitespace_flexible": False})
    if form.kind == "regular expression":
        return LLMatcher.grammar_from_regex(form.text)
    if form.kind == "list of choices":
        return LLMatcher.grammar_from_lark(
            "start: " + " | ".join(json.dumps(choice) for choice in json.loads(form.text))
        )
    return LLMatcher.grammar_from_lark(form.text)


def first_line(message: str) -> str:
    """The first line of a message, shortened."""
    return (message.strip().splitlines() or ["it cannot be read"])[0][:300]
