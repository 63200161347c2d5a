import math

import numpy as np
import pytest
import torch

from ensemw2s.training import objectives
from ensemw2s.training.spec import Objective

NONE = -100


def loss(logits: torch.Tensor, batch: dict[str, torch.Tensor], objective: Objective, *, progress: float):
    """Of a whole batch, from logits `[batch, seq, vocab]`."""
    at = batch["labels"] != NONE
    return objectives.loss(logits[at], objectives.tokens(batch), objective, progress=progress)


def batch(labels: list[list[int]], weights: list[list[float]], **more: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"labels": torch.tensor(labels), "weights": torch.tensor(weights), **more}


def log_of(*rows: list[float]) -> torch.Tensor:
    """Logits of one sequence whose distributions are these rows."""
    return torch.tensor([rows]).log().requires_grad_()


def test_the_loss_is_the_weighted_sum_of_the_tokens_cross_entropies():
    logits = log_of([0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.2, 0.6, 0.2])
    found, xent = loss(logits, batch([[0, NONE, 2]], [[0.75, 0.0, 0.25]]), Objective(), progress=0.0)
    assert found.item() == pytest.approx(0.75 * math.log(2) + 0.25 * math.log(5))
    assert xent.item() == pytest.approx(found.item())
    assert not xent.requires_grad


def test_tokens_of_no_weight_and_tokens_of_the_prompt_get_no_gradient():
    logits = torch.randn(1, 4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found, _ = loss(logits, batch([[NONE, 3, 1, 2]], [[0.0, 0.4, 0.0, 0.6]]), Objective(), progress=0.0)
    found.backward()
    assert not logits.grad[0, 0].any()
    assert not logits.grad[0, 2].any()
    expected = 0.4 * (torch.softmax(logits[0, 1], -1) - torch.eye(5)[3])
    torch.testing.assert_close(logits.grad[0, 1], expected.detach())


def test_a_batch_without_any_answer_token_has_no_loss_and_still_a_gradient_of_zero():
    logits = torch.randn(2, 3, 5).requires_grad_()
    found, xent = loss(logits, batch([[NONE] * 3] * 2, [[0.0] * 3] * 2), Objective(kind="logconf"), progress=0.9)
    assert (found.item(), xent.item()) == (0.0, 0.0)
    found.backward()
    assert not logits.grad.any()


def test_half_precision_logits_give_a_loss_in_full_precision():
    logits = log_of([0.5, 0.25, 0.25]).detach().bfloat16()
    found, _ = loss(logits, batch([[0]], [[1.0]]), Objective(), progress=0.0)
    assert found.dtype == torch.float32


@pytest.mark.parametrize(
    ("progress", "warmup", "share"),
    [(0.0, 0.2, 0.0), (0.05, 0.2, 0.25), (0.1, 0.2, 0.5), (0.2, 0.2, 1.0), (0.9, 0.2, 1.0), (0.0, 0.0, 1.0)],
)
def test_confidence_rises_linearly_to_its_weight(progress, warmup, share):
    objective = Objective(kind="logconf", confidence_weight=0.8, confidence_warmup=warmup)
    found, xent = loss(log_of([0.1, 0.6, 0.3]), batch([[0]], [[1.0]]), objective, progress=progress)
    c = 0.8 * share
    assert found.item() == pytest.approx((1 - c) * -math.log(0.1) + c * -math.log(0.6))
    assert xent.item() == pytest.approx(-math.log(0.1))


def test_confidence_pulls_towards_the_models_own_prediction_as_a_fixed_target():
    objective = Objective(kind="logconf", confidence_weight=0.5, confidence_warmup=0.0)
    logits = log_of([0.1, 0.6, 0.3])
    found, _ = loss(logits, batch([[0]], [[2.0]]), objective, progress=0.0)
    found.backward()
    targets = torch.tensor([0.5, 0.5, 0.0])
    torch.testing.assert_close(logits.grad[0, 0], 2.0 * (torch.tensor([0.1, 0.6, 0.3]) - targets))


def test_confidence_does_not_change_the_loss_of_a_label_that_is_the_prediction():
    objective = Objective(kind="logconf", confidence_weight=0.7, confidence_warmup=0.0)
    found, xent = loss(log_of([0.1, 0.6, 0.3]), batch([[1]], [[1.0]]), objective, progress=0.5)
    assert found.item() == pytest.approx(xent.item())


def soft_batch(weights: list[float]) -> dict[str, torch.Tensor]:
    return batch(
        [[0, 2]],
        [weights],
        soft_ids=torch.tensor([[[0, 2], [2, 1]]]),
        soft_probabilities=torch.tensor([[[0.75, 0.25], [1.0, 0.0]]]),
    )


def test_the_soft_loss_is_the_cross_entropy_with_the_target_distribution():
    logits = log_of([0.5, 0.25, 0.25], [0.1, 0.1, 0.8])
    found, xent = loss(logits, soft_batch([0.5, 0.5]), Objective(kind="soft"), progress=0.0)
    first = -(0.75 * math.log(0.5) + 0.25 * math.log(0.25))
    assert found.item() == pytest.approx(0.5 * first + 0.5 * -math.log(0.8))
    assert xent.item() == pytest.approx(0.5 * math.log(2) + 0.5 * -math.log(0.8))


def test_the_soft_loss_has_the_gradient_of_the_kl_divergence():
    logits = log_of([0.5, 0.25, 0.25], [0.1, 0.1, 0.8])
    found, _ = loss(logits, soft_batch([1.0, 0.0]), Objective(kind="soft"), progress=0.0)
    found.backward()
    np.testing.assert_allclose(logits.grad[0, 0], [0.5 - 0.75, 0.25, 0.25 - 0.25], atol=1e-6)
    assert not logits.grad[0, 1].any()
