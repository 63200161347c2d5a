"""Decoding and scoring: prompts (and answers) as token ids come in, generations and scores go out, in input order.

The engine is an optimisation of `EnsembleForCausalLM`: batched, left-padded, with a key/value cache, rows leaving the
batch when they finish. Labelling, evaluation and serving use `decode` and `score` and nothing else of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from ensemw2s.ensemble.combine import agreement, combine
from ensemw2s.ensemble.model import EnsembleForCausalLM, as_ensemble
from ensemw2s.ensemble.sampling import Sampling, choose, draws
from ensemw2s.errors import ConfigError, DataError, ModelError

# Numbers in the log-probabilities that teacher forcing holds at once (256 MB as float32); batches shrink to fit.
MAX_SCORED_LOGITS = 2**26

Tokens = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class Generation:
    """What was decoded after one prompt; n tokens, the end token included.

    Attributes:
        token_ids: The tokens; the last is an end token unless the length ran out.
        logprobs: `[n]`, float32: log-probability of each token under the combination, before temperature and cut-offs.
        agreement: `[n]`, float32: weighted share of the members whose argmax is the token.
        votes: `[n, members]`, int32: each member's argmax.
        finish_reason: `stop` (an end token) or `length`.
        top_tokens: `[n, k]`, int32: likeliest tokens of the combination, if asked for.
        top_logprobs: `[n, k]`, float32: their log-probabilities.
    """

    token_ids: list[int]
    logprobs: np.ndarray
    agreement: np.ndarray
    votes: np.ndarray
    finish_reason: str
    top_tokens: np.ndarray | None = None
    top_logprobs: np.ndarray | None = None


@dataclass(frozen=True)
class Score:
    """An answer under teacher forcing; n answer tokens.

    Attributes:
        logprobs: `[n]`, float32: log-probability of each token under the combination.
        correct: `[n]`, bool: whether it is the combination's argmax (ties: lowest id).
        member_logprobs: `[members, n]`, float32: the same of each member.
        member_tokens: `[members, n]`, int64: each member's argmax (ties: lowest id).
        member_correct: `[members, n]`, bool: whether that is the answer's token.
    """

    logprobs: np.ndarray
    correct: np.ndarray
    member_logprobs: np.ndarray
    member_tokens: np.ndarray
    member_correct: np.ndarray


def decode(
    model: EnsembleForCausalLM | PreTrainedModel | PeftModel,
    prompts: Sequence[Tokens],
    *,
    max_new_tokens: int,
    eos_ids: int | Sequence[int],
    pad_id: int,
    batch_size: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | Sequence[int] = 0,
    distributions: int = 0,
) -> list[Generation]:
    """Decodes prompts. What comes out for a prompt does not depend on the others, beyond float rounding.

    Args:
        model: An ensemble, or one causal LM.
        prompts: Token ids of each prompt, at least one.
        max_new_tokens: Longest answer in tokens, the end token included.
        eos_ids: Tokens that end an answer.
        pad_id: Any token; it fills the batch and is masked.
        batch_size: Most prompts in a forward pass.
        temperature: 0 is greedy; see `Sampling`.
        top_k: See `Sampling`.
        top_p: See `Sampling`.
        seed: At least 0; one for each prompt, or one from which each prompt's own stream is derived (equal prompts
            then get equal answers: give them seeds of their own to get several samples).
        distributions: Keep this many of the likeliest tokens at every step; 0: none.

    Returns:
        A generation for each prompt, in the order of the prompts.

    Raises:
        DataError: If a prompt is empty or has a token outside the vocabulary; names its index.
        ModelError: If a prompt and its answer do not fit into the context; names its index.
        ConfigError: If an option is out of range.
    """
    ensemble = as_ensemble(model)
    _check_positive(batch_size=batch_size, max_new_tokens=max_new_tokens)
    if not 0 <= distributions <= ensemble.vocabulary:
        raise ConfigError(f"distributions is {distributions}; expected 0 to {ensemble.vocabulary} (the vocabulary)")
    rows = [_tokens(prompt) for prompt in prompts]
    _check_prompts(ensemble, rows, [max_new_tokens] * len(rows), "new tokens")
    seeds = [seed] * len(rows) if isinstance(seed, int) else list(seed)
    if len(seeds) != len(rows) or any(value < 0 for value in seeds):
        raise ConfigError(f"seed is {seed}; expected a number of at least 0, or one for each of {len(rows)} prompts")
    sampling = Sampling(temperature, top_k, top_p)
    ends = [eos_ids] if isinstance(eos_ids, int) else list(eos_ids)
    results: list[Generation | None] = [None] * len(rows)
    for batch in _batches([len(row) for row in rows], batch_size):
        decoder = _BatchDecoder(
            ensemble, [rows[i] for i in batch], [seeds[i] for i in batch], max_new_tokens, pad_id, distributions
        )
        for i, generation in zip(batch, decoder.run(sampling, ends), strict=True):
            results[i] = generation
    return [result for result in results if result is not None]


def score(
    model: EnsembleForCausalLM | PreTrainedModel | PeftModel,
    prompts: Sequence[Tokens],
    answers: Sequence[Tokens],
    *,
    pad_id: int,
    batch_size: int,
) -> list[Score]:
    """Scores answers under teacher forcing: each token given the prompt and the true tokens before it.

    Args:
        model: An ensemble, or one causal LM.
        prompts: Token ids of each prompt, at least one.
        answers: Token ids of each answer, the end token included; an empty one gets an empty score.
        pad_id: Any token; it fills the batch and is masked.
        batch_size: Most sequences in a forward pass (fewer where the vocabulary is large and answers are long).

    Returns:
        A score for each pair, in their order.

    Raises:
        DataError: If a prompt is empty or a token lies outside the vocabulary; names the index.
        ModelError: If a prompt and its answer do not fit into the context; names the index.
        ConfigError: If batch_size is not positive.
    """
    ensemble = as_ensemble(model)
    _check_positive(batch_size=batch_size)
    if len(prompts) != len(answers):
        raise DataError(f"{len(prompts)} prompts and {len(answers)} answers; expected one answer for each prompt")
    rows, targets = [_tokens(prompt) for prompt in prompts], [_tokens(answer) for answer in answers]
    _check_prompts(ensemble, rows, [len(answer) for answer in targets], "answer tokens")
    _check_vocabulary(ensemble, targets, "answer")
    none, many = (0,), (ensemble.num_members, 0)
    empty = Score(
        np.zeros(none, np.float32),
        np.zeros(none, bool),
        np.zeros(many, np.float32),
        np.zeros(many, np.int64),
        np.zeros(many, bool),
    )
    results = [empty] * len(rows)
    filled = [i for i, answer in enumerate(targets) if len(answer)]
    lengths = [len(rows[i]) + len(targets[i]) for i in filled]
    longest = max((len(targets[i]) for i in filled), default=1)
    fitting = max(1, MAX_SCORED_LOGITS // (longest * ensemble.vocabulary * (ensemble.num_members + 1)))
    for batch in _batches(lengths, min(batch_size, fitting)):
        indices = [filled[i] for i in batch]
        scores = _score_batch(ensemble, [rows[i] for i in indices], [targets[i] for i in indices], pad_id)
        for i, value in zip(indices, scores, strict=True):
            results[i] = value
    return results


class _BatchDecoder:
    """One batch on its way: its cache, which rows are still going, and what was recorded so far."""

    def __init__(
        self,
        model: EnsembleForCausalLM,
        prompts: Sequence[np.ndarray],
        seeds: Sequence[int],
        max_new_tokens: int,
        pad_id: int,
        distributions: int,
    ) -> None:
        self.model, self.prompts, self.seeds = model, prompts, seeds
        self.max_new_tokens, self.distributions = max_new_tokens, distributions
        self.ids, prompt_mask = _left_padded(prompts, pad_id, model.device)
        self.width = self.ids.shape[1]
        # Wide enough for the whole answer at once: a step only looks further to the right.
        self.mask = torch.nn.functional.pad(prompt_mask, (0, max_new_tokens), value=1)
        rows, steps, members = len(prompts), max_new_tokens, model.num_members
        self.tokens = torch.zeros(rows, steps, dtype=torch.int32, device=model.device)
        self.logprobs = torch.zeros(rows, steps, device=model.device)
        self.agreement = torch.zeros(rows, steps, device=model.device)
        self.votes = torch.zeros(rows, steps, members, dtype=torch.int32, device=model.device)
        self.top_tokens = torch.zeros(rows, steps, distributions, dtype=torch.int32, device=model.device)
        self.top_logprobs = torch.zeros(rows, steps, distributions, device=model.device)

    @torch.inference_mode()
    def run(self, sampling: Sampling, eos_ids: Sequence[int]) -> Iterator[Generation]:
        """Decodes to the end of every row, then gives the generations in the rows' order."""
        device = self.model.device
        uniform = None if sampling.greedy else self._draws().to(device)
        ends = torch.tensor(list(eos_ids), dtype=torch.int64, device=device)
        cache, ids = self.model.new_cache(), self.ids
        going = torch.arange(len(self.prompts), device=device)  # rows of the batch, by their place in the prompts
        lengths = torch.full((len(self.prompts),), self.max_new_tokens, device=device)
        stopped = torch.zeros(len(self.prompts), dtype=torch.bool, device=device)
        for step in range(self.max_new_tokens):
            members = self.model.member_log_probs(
                ids, attention_mask=self.mask[:, : self.width + step], past_key_values=cache, logits_to_keep=1
            )[:, :, -1]
            combined = combine(members, self.model.weights, self.model.rule)
            tokens = choose(combined, sampling, None if uniform is None else uniform[going, step])
            self._record(going, step, members, combined, tokens)
            done = torch.isin(tokens, ends)
            finished = going[done]
            lengths[finished], stopped[finished] = step + 1, True
            ids = tokens.unsqueeze(-1)
            if len(finished):
                keep = (~done).nonzero().squeeze(-1)
                going, ids, self.mask = going[keep], ids[keep], self.mask[keep]
                if not len(going):
                    break
                cache.batch_select_indices(keep)
        return self._results(lengths.tolist(), stopped.tolist())

    def _draws(self) -> torch.Tensor:
        pairs = zip(self.seeds, self.prompts, strict=True)
        numbers = [draws(seed, [int(t) for t in prompt], self.max_new_tokens) for seed, prompt in pairs]
        return torch.from_numpy(np.stack(numbers))

    def _record(
        self, going: torch.Tensor, step: int, members: torch.Tensor, combined: torch.Tensor, tokens: torch.Tensor
    ) -> None:
        choices = members.argmax(dim=-1)
        self.tokens[going, step] = tokens.int()
        self.logprobs[going, step] = combined.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        self.agreement[going, step] = agreement(choices, tokens, self.model.weights)
        self.votes[going, step] = choices.T.int()
        if self.distributions:
            top = combined.topk(self.distributions, dim=-1)
            self.top_tokens[going, step], self.top_logprobs[going, step] = top.indices.int(), top.values

    def _results(self, lengths: list[int], stopped: list[bool]) -> Iterator[Generation]:
        recorded = (self.tokens, self.logprobs, self.agreement, self.votes, self.top_tokens, self.top_logprobs)
        tokens, logprobs, shares, votes, top_tokens, top_logprobs = (part.cpu().numpy() for part in recorded)
        for row, n in enumerate(lengths):
            yield Generation(
                token_ids=tokens[row, :n].tolist(),
                logprobs=logprobs[row, :n].copy(),
                agreement=shares[row, :n].copy(),
                votes=votes[row, :n].copy(),
                finish_reason="stop" if stopped[row] else "length",
                top_tokens=top_tokens[row, :n].copy() if self.distributions else None,
                top_logprobs=top_logprobs[row, :n].copy() if self.distributions else None,
            )


@torch.inference_mode()
def _score_batch(
    model: EnsembleForCausalLM, prompts: Sequence[np.ndarray], answers: Sequence[np.ndarray], pad_id: int
) -> Iterator[Score]:
    """Scores a batch; every answer has at least one token."""
    # The last token predicts nothing. With padding on the left all answers end in the same column, so the model can
    # skip the output layer for everything before the longest answer.
    inputs = [np.concatenate([p, a[:-1]]) for p, a in zip(prompts, answers, strict=True)]
    ids, mask = _left_padded(inputs, pad_id, model.device)
    targets, _ = _left_padded(answers, 0, model.device)
    members = model.member_log_probs(ids, attention_mask=mask, logits_to_keep=targets.shape[1])
    combined = combine(members, model.weights, model.rule)
    member_logprobs = _taken(members, targets.expand(members.shape[:-1]))
    logprobs = _taken(combined, targets)
    member_tokens, correct = members.argmax(dim=-1), combined.argmax(dim=-1) == targets
    parts = [
        part.cpu().numpy() for part in (logprobs, correct, member_logprobs, member_tokens, member_tokens == targets)
    ]
    for row, answer in enumerate(answers):
        yield Score(*(part[..., row, -len(answer) :].copy() for part in parts))


def _taken(log_probs: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def _batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
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


def _tokens(row: Tokens) -> np.ndarray:
    return np.asarray(row, dtype=np.int64).reshape(-1)


def _check_prompts(model: EnsembleForCausalLM, rows: Sequence[np.ndarray], after: Sequence[int], what: str) -> None:
    _check_vocabulary(model, rows, "prompt")
    for index, (row, count) in enumerate(zip(rows, after, strict=True)):
        if not len(row):
            raise DataError(f"prompt {index} is empty; expected at least one token (a begin-of-sequence token, say)")
        if model.context is not None and len(row) + count > model.context:
            raise ModelError(
                f"prompt {index} has {len(row)} tokens, which with {count} {what} is more than the model's context of "
                f"{model.context}; shorten it, or ask for fewer"
            )


def _check_vocabulary(model: EnsembleForCausalLM, rows: Sequence[np.ndarray], what: str) -> None:
    for index, row in enumerate(rows):
        if len(row) and (row.min() < 0 or row.max() >= model.vocabulary):
            bad = int(row[(row < 0) | (row >= model.vocabulary)][0])
            raise DataError(
                f"{what} {index} has token {bad}, outside the vocabulary of {model.vocabulary}; "
                "was it tokenized with another tokenizer?"
            )


def _check_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ConfigError(f"{name} is {value}; expected at least 1")
