"""Decoding of a list: prompts come in together, a generation for each goes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from peft import PeftModel
from transformers import PreTrainedModel

from ensemw2s.ensemble.engine import Engine
from ensemw2s.ensemble.model import EnsembleForCausalLM
from ensemw2s.ensemble.requests import Generation, Request, Tokens, check_positive
from ensemw2s.ensemble.sampling import Sampling
from ensemw2s.ensemble.speculation import Speculation
from ensemw2s.errors import ConfigError, EnsemW2SError

CHUNK = 2048
"""Prompt tokens that are read between two steps. More than the engine's own: nobody waits for the first tokens."""


def list_engine(
    model: EnsembleForCausalLM | PreTrainedModel | PeftModel,
    *,
    batch_size: int,
    speculation: Speculation | None = None,
) -> Engine:
    """An engine for lists of prompts. Making one takes time and memory: a caller with many lists keeps it.

    Args:
        model: An ensemble, or one causal LM.
        batch_size: Most prompts in a forward pass.
        speculation: Drafts, if they are wanted; the tokens are the same.

    Raises:
        ConfigError: If an option is out of range.
    """
    check_positive(batch_size=batch_size)
    return Engine(model, slots=batch_size, speculation=speculation, chunk=CHUNK)


def decode(
    model: EnsembleForCausalLM | PreTrainedModel | PeftModel,
    prompts: Sequence[Tokens],
    *,
    batch_size: int,
    speculation: Speculation | None = None,
    **options: Any,
) -> list[Generation]:
    """Decodes one list of prompts with an engine of its own.

    Args:
        model: See `list_engine`, as `batch_size` and `speculation`.
        prompts: See `decode_with`, as all other options.
        batch_size: Most prompts in a forward pass.
        speculation: Drafts, if they are wanted.
        **options: Those of `decode_with`.
    """
    return decode_with(list_engine(model, batch_size=batch_size, speculation=speculation), prompts, **options)


def decode_with(
    engine: Engine,
    prompts: Sequence[Tokens],
    *,
    max_new_tokens: int,
    eos_ids: int | Sequence[int],
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | Sequence[int] = 0,
    distributions: int = 0,
    failed: dict[int, EnsemW2SError] | None = None,
) -> list[Generation]:
    """Decodes prompts. What comes out for a prompt does not depend on the others, beyond float rounding.

    Args:
        engine: The caller's; nothing else may be under way in it.
        prompts: Token ids of each prompt, at least one.
        max_new_tokens: Longest answer in tokens, the end token included.
        eos_ids: Tokens that end an answer.
        temperature: 0 is greedy; see `Sampling`.
        top_k: See `Sampling`.
        top_p: See `Sampling`.
        seed: At least 0; one for each prompt, or one from which each prompt's own stream is derived (equal prompts
            then get equal answers: give them seeds of their own to get several samples).
        distributions: Keep this many of the likeliest tokens at every step; default: none.
        failed: Takes the errors of prompts that cannot be decoded, by index; default: the first error is raised.

    Returns:
        A generation for each prompt that can be decoded, in the order of the prompts.

    Raises:
        DataError: If a prompt is empty or has a token outside the vocabulary; names its index.
        ModelError: If a prompt and its answer do not fit into the context; names its index.
        ConfigError: If an option is out of range.
    """
    check_positive(max_new_tokens=max_new_tokens)
    seeds = [int(seed)] * len(prompts) if isinstance(seed, int | np.integer) else list(seed)
    if len(seeds) != len(prompts) or any(value < 0 for value in seeds):
        raise ConfigError(f"seed is {seed}; expected a number of at least 0, or one for each of {len(prompts)} prompts")
    sampling = Sampling(temperature, top_k, top_p)
    ends = (int(eos_ids),) if isinstance(eos_ids, int | np.integer) else tuple(eos_ids)
    requests = [
        Request(prompt, max_new_tokens, ends, sampling, own, distributions=distributions)
        for prompt, own in zip(prompts, seeds, strict=True)
    ]
    results = dict(engine.run(requests, failed=failed))
    return [results[i] for i in sorted(results)]
