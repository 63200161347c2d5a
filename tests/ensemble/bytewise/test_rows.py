"""Rows give what a model gives that reads every context anew."""

from collections.abc import Callable

import pytest
import torch
from transformers import LlamaForCausalLM

from ensemw2s.ensemble.bytewise.rows import ModelRows
from ensemw2s.ensemble.bytewise.tree import Fork
from ensemw2s.ensemble.forward import AloneGroup, MemberNetwork
from ensemw2s.ensemble.model import EnsembleForCausalLM
from ensemw2s.errors import DataError

Make = Callable[..., LlamaForCausalLM]


def mixed(models: list[LlamaForCausalLM], weights: list[float], ids: list[int]) -> torch.Tensor:
    each = [m(torch.tensor([ids])).logits[0, -1].double().softmax(-1) for m in models]
    return sum(w * p for w, p in zip(weights, each, strict=True)) / sum(weights)


@torch.no_grad()
@pytest.mark.parametrize("alone", [False, True])
def test_forks_read_on_from_their_row_and_leave_it_as_it_was(make_model: Make, alone: bool) -> None:
    models, weights = [make_model(0), make_model(1)], [3.0, 1.0]
    rows = ModelRows(EnsembleForCausalLM(models, weights), slots=4)
    if alone:  # architectures that no group knows
        networks = [MemberNetwork(*part) for part in rows.model.parts()]
        rows.groups = [AloneGroup(i, network, "") for i, network in enumerate(networks)]
    root, first = rows.start([5, 6, 7])
    contexts = {root: [5, 6, 7]}
    assert torch.allclose(torch.from_numpy(first), mixed(models, weights, [5, 6, 7]), atol=1e-6)
    for forks, gone in (
        ([Fork(root, 8), Fork(root, 9)], []),
        ([Fork(root, 10), Fork(root, 11)], [root]),  # the last takes the row over
    ):
        made = rows.extend(forks, gone)
        told = {row: [*contexts[fork.row], fork.token] for fork, (row, _) in zip(forks, made, strict=True)}
        contexts.update(told)
        for row, probabilities in made:
            assert torch.allclose(torch.from_numpy(probabilities), mixed(models, weights, contexts[row]), atol=1e-5)
    assert len(contexts) == 4
    rows.free(list(contexts))
    assert sorted(rows._free) == [0, 1, 2, 3]


def test_a_prompt_that_no_row_has_room_for_is_refused(make_model: Make) -> None:
    rows = ModelRows(EnsembleForCausalLM([make_model(0, context=8)], [1.0]), slots=1)
    with pytest.raises(DataError, match="a prompt has 9 tokens, member-0 reads up to 8; shorten it"):
        rows.start([1] * 9)
    with pytest.raises(DataError, match="a prompt has no tokens; expected at least one"):
        rows.start([])
