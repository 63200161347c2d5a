"""A list of prompts in, a generation for each out: the engine for those who have all prompts at hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from ensemw2s.ensemble.engine import Engine
from ensemw2s.ensemble.model import EnsembleForCausalLM, as_ensemble
from ensemw2s.ensemble.requests import Generation, Request, Tokens, check_positive
from ensemw2s.ensemble.sampling import Sampling
from ensemw2s.ensemble.speculation import Speculation
from ensemw2s.errors import ConfigError, EnsemW2SError

CHUNK = 2048
"""Prompt tokens that are read at a time: nobody waits for the first answers here."""


def decode(
    model: EnsembleForCausalLM | PreTrainedModel | PeftModel,
    prompts: Sequence[Tokens],
    *,
    max_new_tokens: int,
    eos_ids: int | Sequence[int],
    batch_size: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | Sequence[int] = 0,
    distributions: int = 0,
    speculation: Speculation | None = None,
    failed: dict[int, EnsemW2SError] | None = None,
) -> list[Generation]:
    """Decodes prompts. What comes out for a prompt does not depend on the others, beyond float rounding.

    Args:
        model: An ensemble, or one causal LM.
        prompts: Token ids of each prompt, at least one.
        max_new_tokens: Longest answer in tokens, the end token included.
        eos_ids: Tokens that end an answer.
        batch_size: Most prompts in a forward pass.
        temperature: 0 is greedy; see `Sampling`.
        top_k: See `Sampling`.
        top_p: See `Sampling`.
        seed: At least 0; one for each prompt, or one from which each prompt's own stream is derived (equal prompts
            then get equal answers: give them seeds of their own to get several samples).
        distributions: Keep this many of the likeliest tokens at every step; 0: none.
        speculation: Drafts, if they are wanted; the tokens are the same.
        failed: Takes what is wrong with prompts that cannot be decoded, by their index; none: the first is raised.

    Returns:
        A generation for each prompt that can be decoded, in the order of the prompts.

    Raises:
        DataError: If a prompt is empty or has a token outside the vocabulary; names its index.
        ModelError: If a prompt and its answer do not fit into the context; names its index.
        ConfigError: If an option is out of range.
    """
    ensemble = as_ensemble(model)
    check_positive(batch_size=batch_size, max_new_tokens=max_new_tokens)
    seeds = [int(seed)] * len(prompts) if isinstance(seed, int | np.integer) else list(seed)
    if len(seeds) != len(prompts) or any(value < 0 for value in seeds):
        raise ConfigError(f"seed is {seed}; expected a number of at least 0, or one for each of {len(prompts)} prompts")
    sampling = Sampling(temperature, top_k, top_p)
    ends = (int(eos_ids),) if isinstance(eos_ids, int | np.integer) else tuple(eos_ids)
    requests = [
        Request(prompt, max_new_tokens, ends, sampling, own, distributions=distributions)
        for prompt, own in zip(prompts, seeds, strict=True)
    ]
    results = dict(_engine(ensemble, batch_size, speculation).run(requests, failed=failed))
    return [results[i] for i in sorted(results)]


def last_engine(ensemble: EnsembleForCausalLM) -> Engine | None:
    """The engine of the last call of `decode` for this ensemble, whose counters go on over calls."""
    return ensemble.last_engine[0] if ensemble.last_engine else None


def _engine(ensemble: EnsembleForCausalLM, slots: int, speculation: Speculation | None) -> Engine:
    """The engine of the last call where it fits: groups are checked against their members only once."""
    weights = _state(ensemble)
    engine, wanted = ensemble.last_engine or (None, None)
    if engine is not None and not engine.busy and wanted == (slots, speculation, weights):
        return engine
    engine = Engine(ensemble, slots=slots, speculation=speculation, chunk=CHUNK)
    ensemble.last_engine = (engine, (slots, speculation, _state(ensemble)))  # its weights are stacked by now
    return engine


def _state(ensemble: EnsembleForCausalLM) -> list[tuple[int, torch.dtype, int]]:
    """What changes when weights are replaced, cast or trained; adapters are copied into the engine."""
    return [(p.data_ptr(), p.dtype, 0 if p.is_inference() else p._version) for p in ensemble.parameters()]
