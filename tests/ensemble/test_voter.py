import pytest
import torch
from pydantic import ValidationError

from ensemw2s.ensemble.artifact import MemberSource, save_ensemble
from ensemw2s.ensemble.decoding import decode
from ensemw2s.ensemble.voter import Voter, load_voters
from ensemw2s.errors import ModelError
from ensemw2s.models.loading import tokenizer_hash


def voter(name: str, folders: list, weights: list[float], **fields) -> Voter:
    return Voter(name=name, models=[str(folder) for folder in folders], weights=weights, **fields)


def answers(loaded, prompts) -> list[list[int]]:
    size = {"eos_ids": loaded.eos_id, "batch_size": 4}
    return [g.token_ids for g in decode(loaded.model, prompts, max_new_tokens=6, **size)]


@pytest.mark.parametrize("rule", ["probability", "log_probability", "vote"])
def test_models_answer_together_by_weight_and_rule(full_folders, experts, prompts, naive_greedy, rule):
    weights = [0.5, 0.2, 0.3]
    [loaded] = load_voters([voter("all", full_folders, weights, rule=rule)], device="cpu")
    expected = [naive_greedy(experts, weights, p, 6, [loaded.eos_id], rule) for p in prompts[:4]]
    assert answers(loaded, prompts[:4]) == expected


def test_a_voters_temperatures_are_those_of_its_members(full_folders, experts, prompts, naive_greedy):
    weights, heat = [0.5, 0.2, 0.3], [0.4, 2.5, 1.0]
    [loaded] = load_voters([voter("all", full_folders, weights, temperatures=heat)], device="cpu")
    expected = [naive_greedy(experts, weights, p, 6, [loaded.eos_id], "probability", heat) for p in prompts[:4]]
    assert answers(loaded, prompts[:4]) == expected


def test_a_model_alone_answers_as_itself(full_folders, experts, prompts, naive_greedy):
    [loaded] = load_voters([voter("one", full_folders[1:2], [1.0])], device="cpu")
    assert answers(loaded, prompts[:3]) == [naive_greedy([experts[1]], [1.0], p, 6, [2]) for p in prompts[:3]]


def test_a_model_that_several_share_is_in_memory_once(full_folders):
    first, second, both = load_voters(
        [
            voter("first", full_folders[:1], [1.0]),
            voter("second", full_folders[1:2], [1.0]),
            voter("both", full_folders[1::-1], [0.25, 0.75]),
        ],
        device="cpu",
    )
    assert both.model.networks[0] is second.model.networks[0]
    assert both.model.networks[1] is first.model.networks[0]
    assert list(both.model.weights) == [0.25, 0.75]


def test_adapters_of_one_base_share_it_between_voters(adapter_folders, prompts):
    single, both = load_voters(
        [voter("single", adapter_folders[:1], [1.0]), voter("both", adapter_folders[:2], [0.5, 0.5])], device="cpu"
    )
    assert single.model.networks[0] is both.model.networks[0]
    alone = answers(single, prompts)
    answers(both, prompts)
    assert answers(single, prompts) == alone, "another voter's adapters must not stay switched on"


def test_a_saved_ensemble_answers_like_its_members(full_folders, tokenizer, prompts, tmp_path):
    members = [
        MemberSource(name=f"m{i}", directory=folder, alpha=w, weight=w, round=i + 1, weighted_error=0.1)
        for i, (folder, w) in enumerate(zip(full_folders, (2.0, 1.0, 1.0), strict=True))
    ]
    save_ensemble(tmp_path / "ensemble", members=members, rule="log_probability", tokenizer=tokenizer)
    [saved] = load_voters([Voter(name="ensemw2s", ensemble=str(tmp_path / "ensemble"))], device="cpu")
    [loose] = load_voters([voter("loose", full_folders, [0.5, 0.25, 0.25], rule="log_probability")], device="cpu")
    assert answers(saved, prompts) == answers(loose, prompts)
    assert tokenizer_hash(saved.tokenizer) == tokenizer_hash(loose.tokenizer)
    assert (saved.pad_id, saved.eos_id) == (0, 2)


def test_weights_have_the_type_that_was_asked_for(full_folders):
    [loaded] = load_voters([voter("one", full_folders[:1], [1.0])], device="cpu", precision="bf16")
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(ModelError, match="absent"):
        load_voters([voter("gone", [tmp_path / "absent"], [1.0])], device="cpu")


def test_a_description_survives_json(full_folders):
    described = voter("all", full_folders, [0.5, 1 / 3, 1 / 6], rule="vote")
    assert Voter.model_validate_json(described.model_dump_json()) == described
    with pytest.raises(ValidationError, match="rule"):
        voter("bad", full_folders, [1.0], rule="mean")
