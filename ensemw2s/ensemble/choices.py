"""The arithmetic of one step: the members' logits come in; a token per place, and what is recorded of it, go out.

Apart from the engine because it is a function of its inputs: it knows no caches, slots or time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from ensemw2s.ensemble.combine import combine
from ensemw2s.ensemble.model import EnsembleForCausalLM
from ensemw2s.ensemble.requests import PromptScores
from ensemw2s.ensemble.running import Running
from ensemw2s.ensemble.sampling import choose
from ensemw2s.ensemble.shaping import guided, shaped


def log_probs(parts: Sequence[torch.Tensor], order: torch.Tensor, temperatures: Sequence[float]) -> torch.Tensor:
    """Log-probabilities of every member.

    Args:
        parts: Each group's logits, `[members, slots, q, vocabulary]`.
        order: `[members]`, int64: for each member of the ensemble its place among those of all groups.
        temperatures: What each member's logits are divided by, in the ensemble's order; empty: 1.

    Returns:
        `[members, slots, q, vocabulary]`, float32, in the ensemble's order.
    """
    device = parts[0].device
    logits = parts[0] if len(parts) == 1 else torch.cat([part.to(device).float() for part in parts])
    if len(parts) > 1:
        logits = logits[order.to(device)]
    logits = logits.float()
    if temperatures:
        logits = logits / torch.tensor(temperatures, device=device).view(-1, 1, 1, 1)
    return torch.log_softmax(logits, dim=-1)


DEVICE_ERRORS = (torch.AcceleratorError,) if hasattr(torch, "AcceleratorError") else ()


class Chosen(NamedTuple):
    """What a step chose for one row.

    Attributes:
        tokens: A token for each place.
        records: What was recorded of the rows that were looked at together, see `choose_tokens`.
        slot: The row's place among these.
    """

    tokens: list[int]
    records: list[np.ndarray]
    slot: int


def choices_of_each(
    model: EnsembleForCausalLM, rows: Sequence[Running], members: torch.Tensor
) -> list[Chosen | Exception]:
    """`choose_tokens` for each row. Where that fails, halves are tried: an error is that of the rows that cause it.

    Raises:
        RuntimeError: If the device has failed, which no row can be blamed for.
    """
    try:
        tokens, records = choose_tokens(model, rows, members)
    except Exception as error:
        if isinstance(error, DEVICE_ERRORS):
            raise
        if len(rows) == 1:
            return [error]
        half = len(rows) // 2
        first = choices_of_each(model, rows[:half], members[:, :half])
        return first + choices_of_each(model, rows[half:], members[:, half:])
    return [Chosen(own, records, slot) for slot, own in enumerate(tokens)]


def choose_tokens(
    model: EnsembleForCausalLM, rows: Sequence[Running], members: torch.Tensor
) -> tuple[list[list[int]], list[np.ndarray]]:
    """Lets the members vote.

    Args:
        model: The ensemble: its weights, where a request has none of its own, and its rule.
        rows: The requests in the slots.
        members: `log_probs`.

    Returns:
        Tokens `[slots, q]`, and what is recorded of each, by `running.Column`: arrays whose first two dimensions are
        slots and q.
    """
    q = members.shape[2]
    combined = combine(members, model.weights, model.rule)
    for i, row in enumerate(rows):
        if row.request.weights is not None:
            combined[i] = combine(members[:, i], row.weights, model.rule)
    each = [row.request.sampling for row in rows for _ in range(q)]
    uniform = None
    if any(row.uniform is not None for row in rows):
        uniform = torch.from_numpy(np.concatenate([row.numbers(q) for row in rows])).to(combined.device)
    tokens = choose(_shaped(combined, rows).flatten(0, 1), each, uniform).view(len(rows), q)
    logprobs = combined.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    choices = members.argmax(dim=-1).permute(1, 2, 0)
    whole = torch.cat([tokens.unsqueeze(-1), choices], dim=-1).int().cpu().numpy()
    records = [logprobs.cpu().numpy(), whole[:, :, 1:]]
    records += _likeliest(combined, [row.request.distributions for row in rows])
    records += _likeliest(members.permute(1, 2, 0, 3), [row.request.votes for row in rows])
    return whole[:, :, 0].tolist(), records


def _shaped(combined: torch.Tensor, rows: Sequence[Running]) -> torch.Tensor:
    """What tokens are chosen by: rows that change it have one token in a step, so only their first place counts."""
    changing = [slot for slot, row in enumerate(rows) if not row.request.draftable]
    if not changing:
        return combined
    combined = combined.clone()
    for slot in changing:
        row, request = rows[slot], rows[slot].request
        scores = combined[slot, 0]
        if request.shaping is not None:
            answer = row.sequence[row.prompt_length :]
            scores = shaped(scores, request.shaping, row.sequence[: row.prompt_length], answer, request.eos_ids)
        if request.guide is not None:
            scores = guided(scores, request.guide)
        combined[slot, 0] = scores
    return combined


def score_prompt(model: EnsembleForCausalLM, row: Running, members: torch.Tensor) -> PromptScores:
    """Scores the tokens that follow those of a part of a row's prompt.

    Args:
        model: The ensemble, for its rule.
        row: The row; the part begins at `read`.
        members: `[members, q, vocabulary]`: log-probabilities after each token of the part.
    """
    combined = combine(members, row.weights, model.rule)
    following = row.sequence[row.read + 1 : row.read + 1 + combined.shape[0]]
    targets = torch.tensor(following, device=combined.device).unsqueeze(-1)
    logprobs = combined.gather(-1, targets).squeeze(-1)
    top = combined.topk(row.request.prompt_scores or 0, dim=-1)
    return PromptScores(logprobs.cpu().numpy(), top.indices.int().cpu().numpy(), top.values.cpu().numpy())


def _likeliest(scores: torch.Tensor, counts: list[int]) -> list[np.ndarray]:
    """Tokens and log-probabilities, each `[slots, q, ..., k]`, of the slots that want any; the others have zeros."""
    slots, most = [slot for slot, count in enumerate(counts) if count], max(counts)
    shape = (*scores.shape[:-1], most)
    tokens, values = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    if slots:
        found = scores[slots].topk(most, dim=-1)
        tokens[slots], values[slots] = found.indices.int().cpu().numpy(), found.values.cpu().numpy()
    return [tokens, values]
