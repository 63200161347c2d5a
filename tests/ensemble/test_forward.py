from collections.abc import Sequence

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

from ensemw2s.ensemble import forward
from ensemw2s.ensemble.forward import Group, MemberNetwork, RowGroup, make_groups
from ensemw2s.ensemble.members import load_members
from ensemw2s.ensemble.model import EnsembleForCausalLM

STACKED = "stacked full weights, one pass"
SHARED = "adapters on one base, one pass"


def members_of(models: Sequence[object]) -> list[MemberNetwork]:
    return [MemberNetwork(*part) for part in EnsembleForCausalLM(models, [1.0] * len(models)).parts()]


def with_adapters(base: torch.nn.Module, **configs: LoraConfig) -> PeftModel:
    """A base with random adapters."""
    names = list(configs)
    model = get_peft_model(base, configs[names[0]], adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, configs[name])
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_A" in name or "lora_B" in name or "lora_embedding" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model.eval()


KINDS = ["stacked", "adapters", "alone", "learned positions"]
SLOW_KINDS = ["sliding window", "convolutions"]


@pytest.fixture(params=[*KINDS, *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW_KINDS)])
def members(request, make_model, make_other, adapter_folders) -> list[MemberNetwork]:
    if request.param == "stacked":
        return members_of([make_model(seed) for seed in range(3)])
    if request.param == "adapters":
        return members_of(load_members(adapter_folders))
    if request.param == "alone":
        return members_of([make_other("no positions", 0)])
    return members_of([make_other(request.param, seed) for seed in range(2)])


@torch.no_grad()
def alone(member: MemberNetwork, ids: Sequence[int]) -> torch.Tensor:
    """Log-probabilities of a member by itself, `[tokens, vocabulary]`."""
    if member.peft is not None:
        member.peft.set_adapter(member.adapter)
    return member.network(torch.tensor([ids])).logits[0].log_softmax(-1)


def check(
    groups: Sequence[Group], members: Sequence[MemberNetwork], rows: Sequence[list[int]], starts: list[int]
) -> None:
    """The logits after the tokens from `starts` on are those of each member alone."""
    counts = [len(row) - start for row, start in zip(rows, starts, strict=True)]
    ids = torch.zeros(len(rows), max(counts), dtype=torch.int64)
    for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
        ids[i, : counts[i]] = torch.tensor(row[start:])
    for group in groups:
        got = group.logits(ids, starts, counts).log_softmax(-1)
        assert got.shape == (len(group.members), len(rows), max(counts), 64)
        for place, index in enumerate(group.members):
            for i, row in enumerate(rows):
                expected = alone(members[index], row)[-counts[i] :]
                torch.testing.assert_close(got[place, i, : counts[i]], expected, atol=2e-3, rtol=1e-3)


def read(groups: Sequence[Group], rows: Sequence[list[int]], first: int = 0) -> None:
    counts = [len(row) for row in rows]
    ids = torch.tensor([row + [0] * (max(counts) - len(row)) for row in rows])
    for group in groups:
        group.read(ids, [0] * len(rows), counts, first)


def texts(*lengths: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 64, (n,), generator=generator).tolist() for n in lengths]


def test_every_member_gets_its_own_logits_whatever_was_read_before(members):
    groups = make_groups(members, 3)
    rows = texts(14, 9, 12)
    read(groups, [rows[0][:10], rows[1][:3], rows[2][:8]])
    check(groups, members, rows, [10, 3, 8])


def test_slots_are_read_again_from_the_start_as_if_they_were_new(members):
    groups = make_groups(members, 2)
    read(groups, texts(20, 11))
    rows = texts(6, 9, seed=1)
    check(groups, members, rows, [0, 0])


def test_prompts_are_read_into_later_slots_while_the_first_are_kept(members):
    groups = make_groups(members, 4)
    rows = texts(8, 10, 4, 13)
    read(groups, [row[:-1] for row in rows[:2]])
    read(groups, [row[:-1] for row in rows[2:]], first=2)
    check(groups, members, rows, [len(row) - 1 for row in rows])


def test_a_slot_that_moved_goes_on_where_it_was(members):
    groups = make_groups(members, 3)
    rows = texts(8, 10, 13)
    read(groups, [row[:-2] for row in rows])
    for group in groups:
        group.move(2, 0)
    rows = [rows[2], rows[1]]
    check(groups, members, rows, [len(row) - 2 for row in rows])


def test_a_slot_that_was_never_read_can_move(members):
    groups = make_groups(members, 3)
    for group in groups:
        group.move(2, 0)
    check(groups, members, texts(5), [0])


@pytest.mark.parametrize("kind", ["stacked", "adapters", "sliding window"])
def test_tokens_can_be_taken_back(kind, make_model, make_other, adapter_folders):
    models = {
        "stacked": lambda: [make_model(seed) for seed in range(2)],
        "adapters": lambda: load_members(adapter_folders[:2]),
        "sliding window": lambda: [make_other("sliding window", seed) for seed in range(2)],
    }
    members = members_of(models[kind]())
    groups = make_groups(members, 2)
    wrong = texts(15, 12)
    read(groups, wrong)
    rows = [wrong[0][:9] + texts(5, seed=1)[0], wrong[1][:4] + texts(4, seed=2)[0]]
    check(groups, members, rows, [9, 4])
    assert all(isinstance(group, RowGroup) for group in groups)


def test_a_part_of_a_group_runs_without_the_others(make_model):
    members = members_of([make_model(seed) for seed in range(3)])
    [group] = make_groups(members, 2)
    rows = texts(7, 7)
    read([group], [row[:5] for row in rows])
    ids = torch.tensor([row[5:] for row in rows])
    got = group.logits(ids, [5, 5], [2, 2], members=slice(1, 2)).log_softmax(-1)
    assert got.shape == (1, 2, 2, 64)
    for slot, row in enumerate(rows):
        torch.testing.assert_close(got[0, slot], alone(members[1], row)[-2:], atol=2e-3, rtol=1e-3)
    check([group], members, rows, [5, 5])


def test_members_of_one_architecture_are_stacked_and_others_take_a_pass_of_their_own(make_model, make_other):
    models = [make_model(0), make_other("learned positions", 0), make_model(1), make_other("no positions", 0)]
    groups = make_groups(members_of(models), 2)
    assert {tuple(group.members): group.kind for group in groups} == {
        (0, 2): STACKED,
        (1,): "one pass",
        (3,): "one prompt at a time (BloomForCausalLM has an attention of its own)",
    }
    check(groups, members_of(models), texts(6, 4), [0, 0])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("learned positions", STACKED),
        ("sliding window", STACKED),
        ("normalised heads", STACKED),
        ("no positions", "one prompt at a time (BloomForCausalLM has an attention of its own)"),
        ("convolutions", "one prompt at a time (Lfm2ForCausalLM has layers of kind conv)"),
    ],
)
def test_each_architecture_says_how_it_runs(kind, expected, make_other):
    models = [make_other(kind, seed) for seed in range(2)]
    assert {group.kind for group in make_groups(members_of(models), 2)} == {expected}


def test_large_full_members_are_not_stacked(make_model, monkeypatch):
    monkeypatch.setattr(forward, "STACK_UP_TO", 1000)
    groups = make_groups(members_of([make_model(0), make_model(1)]), 2)
    assert [(group.members, group.kind) for group in groups] == [([0], "one pass"), ([1], "one pass")]


def test_members_of_other_sizes_do_not_share_a_pass(make_model):
    groups = make_groups(members_of([make_model(0), make_model(1, context=48)]), 2)
    assert [(group.members, group.kind) for group in groups] == [([0], "one pass"), ([1], "one pass")]


@pytest.mark.parametrize("config", [{"use_dora": True}, {"target_modules": ["embed_tokens", "q_proj"]}])
def test_adapters_that_cannot_share_a_pass_run_one_prompt_at_a_time(config, make_model):
    plain = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    other = LoraConfig(r=2, **{"target_modules": ["q_proj", "v_proj"], **config})
    model = with_adapters(make_model(10), plain=plain, other=other)
    members = [MemberNetwork(model.get_base_model(), model, name) for name in ("plain", "other")]
    groups = make_groups(members, 2)
    assert [index for group in groups for index in group.members] == [0, 1]
    assert groups[-1].kind.startswith("one prompt at a time (adapters of ")
    rows = texts(8, 6)
    check(groups, members, rows, [0, 0])
    read(groups, rows)
    rows = [row + more for row, more in zip(rows, texts(1, 1, seed=1), strict=True)]
    check(groups, members, rows, [8, 6])


def test_a_group_that_gives_other_numbers_than_its_members_is_not_used(make_model, monkeypatch):
    right = forward.causal_mask
    monkeypatch.setattr(forward, "causal_mask", lambda *args: right(*args).clamp(min=-0.5))  # sees what comes after
    models = [make_model(0), make_model(1)]
    groups = make_groups(members_of(models), 2)
    assert len(groups) == 2
    for group in groups:
        assert group.kind.startswith("one prompt at a time (its pass differs from LlamaForCausalLM's own by ")
    check(groups, members_of(models), texts(6, 4), [0, 0])


def test_a_model_that_is_a_member_twice_votes_twice(make_model):
    model = make_model(0)
    members = members_of([model, model])
    check(make_groups(members, 2), members, texts(6, 4), [0, 0])
    members = members_of([model, make_model(1), model])
    groups = make_groups(members, 2)
    assert sorted(index for group in groups for index in group.members) == [0, 1, 2]
    check(groups, members, texts(6, 4), [0, 0])


def test_a_vocabulary_of_a_few_tokens_shares_a_pass_too(make_model):
    [group] = make_groups(members_of([make_model(seed, vocabulary=6) for seed in range(2)]), 2)
    assert group.kind == STACKED


@pytest.mark.parametrize(("windows", "kind"), [(True, "sliding window in the mask alone"), (False, "one pass")])
def test_a_sliding_window_that_is_in_the_mask_alone_is_not_missed(windows, kind):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
    experts_ = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32}
    config = Qwen2MoeConfig(
        **sizes,
        **experts_,
        shared_expert_intermediate_size=32,
        vocab_size=64,
        num_hidden_layers=2,
        use_sliding_window=windows,
        sliding_window=32,  # longer than the rows that a group is checked with
        max_window_layers=2,
        initializer_range=0.3,
    )
    model = Qwen2MoeForCausalLM(config).eval()
    [group] = make_groups([MemberNetwork(model, None, None)], 2)
    assert kind in group.kind


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotations_that_depend_on_the_longest_row_keep_a_member_alone(make_model, kind):
    model = make_model(0)
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_type": kind}
    [group] = make_groups([MemberNetwork(model, None, None)], 2)
    assert kind in group.kind
    assert "one prompt at a time" in group.kind
