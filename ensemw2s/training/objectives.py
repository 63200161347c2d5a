"""The losses per token: plain cross-entropy, KL to a target distribution, and the auxiliary confidence loss.

Logits of answer tokens and what a micro-batch (see `batches.collate`) says of these go in, the weighted sum of token
losses comes out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ensemw2s.training.spec import Objective


def tokens(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A micro-batch without its inputs, and of the rest `[answer tokens, ...]`, row after row."""
    at = batch["labels"] != -100
    return {key: value[at] for key, value in batch.items() if key not in ("input_ids", "attention_mask")}


def loss(
    logits: torch.Tensor, tokens: dict[str, torch.Tensor], objective: Objective, *, progress: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted loss of some answer tokens.

    Args:
        logits: [tokens, vocab], any float type; the loss is computed in float32.
        tokens: `labels` and `weights` [tokens]; for `soft` also the target distributions.
        objective: Which loss.
        progress: Share of the training steps done, in [0, 1); the confidence weight warms up with it.

    Returns:
        Sum over tokens of weight · loss, and the same with plain cross-entropy for logging, float32 scalars.
    """
    log_p = F.log_softmax(logits.float(), dim=-1)
    weights, labels = tokens["weights"], tokens["labels"]
    xent = -log_p.gather(1, labels[:, None]).squeeze(1)
    if objective.kind == "soft":
        token_loss = -(tokens["soft_probabilities"] * log_p.gather(1, tokens["soft_ids"])).sum(dim=1)
    elif objective.kind == "logconf":
        token_loss = _logconf(log_p, xent, objective, progress)
    else:
        token_loss = xent
    return (weights * token_loss).sum(), (weights * xent).sum().detach()


def _logconf(log_p: torch.Tensor, xent: torch.Tensor, objective: Objective, progress: float) -> torch.Tensor:
    """(1-c) · CE(label) + c · CE(own hardened prediction), c rising linearly (Burns et al. 2023, section 4.3)."""
    warmup = objective.confidence_warmup
    weight = objective.confidence_weight * (min(1.0, progress / warmup) if warmup > 0 else 1.0)
    own = -log_p.max(dim=-1).values  # the hardened prediction is a constant target: its gradient is that of CE
    return (1.0 - weight) * xent + weight * own
