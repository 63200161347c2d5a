"""Teacher forcing: prompts and answers as token ids come in, the log-probability of every answer token goes out.

The sibling of the engine for tokens that are known already: error masks, losses and evaluation are made of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from ensemw2s.ensemble.combine import combine
from ensemw2s.ensemble.model import EnsembleForCausalLM, as_ensemble
from ensemw2s.ensemble.requests import Tokens, as_tokens, check_context, check_positive, check_vocabulary
from ensemw2s.errors import DataError

# Numbers in the log-probabilities that teacher forcing holds at once (256 MB as float32); batches shrink to fit.
MAX_SCORED_LOGITS = 2**26


@dataclass(frozen=True)
class Score:
    """An answer under teacher forcing; n answer tokens.

    Attributes:
        logprobs: `[n]`, float32: log-probability of each token under the combination.
        correct: `[n]`, bool: whether it is the combination's argmax (ties: lowest id).
        member_logprobs: `[members, n]`, float32: the same of each member.
        member_tokens: `[members, n]`, int64: each member's argmax (ties: lowest id).
        member_correct: `[members, n]`, bool: whether that is the answer's token.
        scaled_nll: `[temperatures, members]`, float64: each member's negative log-likelihood of the whole answer, in
            nats, with its logits divided by each of the temperatures that `score` was given.
    """

    logprobs: np.ndarray
    correct: np.ndarray
    member_logprobs: np.ndarray
    member_tokens: np.ndarray
    member_correct: np.ndarray
    scaled_nll: np.ndarray


def score(
    model: EnsembleForCausalLM | PreTrainedModel | PeftModel,
    prompts: Sequence[Tokens],
    answers: Sequence[Tokens],
    *,
    pad_id: int,
    batch_size: int,
    temperatures: Sequence[float] = (),
) -> list[Score]:
    """Scores answers under teacher forcing: each token given the prompt and the true tokens before it.

    Args:
        model: An ensemble, or one causal LM.
        prompts: Token ids of each prompt, at least one.
        answers: Token ids of each answer, the end token included; an empty one gets an empty score.
        pad_id: Any token; it fills the batch and is masked.
        batch_size: Most sequences in a forward pass (fewer where the vocabulary is large and answers are long).
        temperatures: For `Score.scaled_nll`; they come on top of the ensemble's own.

    Returns:
        A score for each pair, in their order.

    Raises:
        DataError: If a prompt is empty or a token lies outside the vocabulary; names the index.
        ModelError: If a prompt and its answer do not fit into the context; names the index.
        ConfigError: If batch_size is not positive.
    """
    ensemble = as_ensemble(model)
    check_positive(batch_size=batch_size)
    if len(prompts) != len(answers):
        raise DataError(f"{len(prompts)} prompts and {len(answers)} answers; expected one answer for each prompt")
    rows, targets = [as_tokens(prompt) for prompt in prompts], [as_tokens(answer) for answer in answers]
    for i, (row, target) in enumerate(zip(rows, targets, strict=True)):
        if not len(row):
            raise DataError(f"prompt {i} is empty; expected at least one token (a begin-of-sequence token, say)")
        check_vocabulary(ensemble, row, f"prompt {i}")
        check_vocabulary(ensemble, target, f"answer {i}")
        check_context(ensemble, row, len(target), f"prompt {i}", "answer tokens")
    none, many = (0,), (ensemble.num_members, 0)
    empty = Score(
        np.zeros(none, np.float32),
        np.zeros(none, bool),
        np.zeros(many, np.float32),
        np.zeros(many, np.int64),
        np.zeros(many, bool),
        np.zeros((len(temperatures), ensemble.num_members)),
    )
    results = [empty] * len(rows)
    filled = [i for i, answer in enumerate(targets) if len(answer)]
    lengths = [len(rows[i]) + len(targets[i]) for i in filled]
    longest = max((len(targets[i]) for i in filled), default=1)
    copies = ensemble.num_members * (2 if temperatures else 1) + 1
    fitting = max(1, MAX_SCORED_LOGITS // (longest * ensemble.vocabulary * copies))
    for batch in batches(lengths, min(batch_size, fitting)):
        indices = [filled[i] for i in batch]
        scores = _score_batch(ensemble, [rows[i] for i in indices], [targets[i] for i in indices], pad_id, temperatures)
        for i, value in zip(indices, scores, strict=True):
            results[i] = value
    return results


@torch.inference_mode()
def _score_batch(
    model: EnsembleForCausalLM,
    prompts: Sequence[np.ndarray],
    answers: Sequence[np.ndarray],
    pad_id: int,
    temperatures: Sequence[float],
) -> Iterator[Score]:
    """Scores a batch; every answer has at least one token."""
    # The last token predicts nothing. With padding on the left all answers end in the same column, so that even a model
    # that cannot be asked for chosen tokens skips the output layer for everything before the longest answer.
    inputs = [np.concatenate([p, a[:-1]]) for p, a in zip(prompts, answers, strict=True)]
    ids, mask = _left_padded(inputs, pad_id, model.device)
    longest = max(len(answer) for answer in answers)
    chosen = torch.zeros_like(mask, dtype=torch.bool)
    for row, answer in enumerate(answers):
        chosen[row, -len(answer) :] = True
    targets = torch.from_numpy(np.concatenate(answers)).to(model.device).unsqueeze(0)
    members = model.member_log_probs(ids, attention_mask=mask, logits_to_keep=longest, chosen=chosen)
    combined = combine(members, model.weights, model.rule)
    member_logprobs = _taken(members, targets.expand(members.shape[:-1]))
    logprobs = _taken(combined, targets)
    member_tokens, correct = members.argmax(dim=-1), combined.argmax(dim=-1) == targets
    parts = [
        part.cpu().numpy() for part in (logprobs, correct, member_logprobs, member_tokens, member_tokens == targets)
    ]
    scaled = [(member_logprobs / t - (members / t).logsumexp(dim=-1)).cpu().numpy() for t in temperatures]
    start = 0
    for answer in answers:
        own = slice(start, start := start + len(answer))
        nll = [-part[:, 0, own].sum(axis=-1, dtype=np.float64) for part in scaled]
        rows = [part[..., 0, own].copy() for part in parts]
        yield Score(*[*rows, np.array(nll).reshape(len(temperatures), model.num_members)])


def _taken(log_probs: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices by falling length: little padding, and a batch that is too big for the memory fails first."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _left_padded(rows: Sequence[np.ndarray], pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, both `[rows, longest]`, int64."""
    width = max(len(row) for row in rows)
    ids = np.full((len(rows), width), pad_id, np.int64)
    mask = np.zeros((len(rows), width), np.int64)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = row
        mask[i, width - len(row) :] = 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)
