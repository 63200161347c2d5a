from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.pytorch_utils import Conv1D

from ensemw2s.ensemble.rows import (
    Active,
    AdaptedLinear,
    FewRowsLinear,
    NotStackable,
    StackedEmbedding,
    StackedLinear,
    StackedNorm,
    shared_base,
    stacked,
)

MEMBERS = 3
SHAPES = [(1, 1), (2, 1), (4, 5)]  # rows a member, tokens a row
TARGETS = ["q_proj", "v_proj", "down_proj"]


@pytest.fixture
def active() -> Active:
    return Active(slice(0, MEMBERS), MEMBERS)


def together(layers: list[nn.Module], inputs: torch.Tensor) -> torch.Tensor:
    """Each member's layer on its part of the rows."""
    return torch.cat([layer(part) for layer, part in zip(layers, inputs.chunk(len(layers)), strict=True)])


@pytest.mark.parametrize("rows", [1, 2, 16, 17])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_for_few_rows_is_the_plain_layer(rows, bias):
    plain = nn.Linear(6, 10, bias=bias)
    few = FewRowsLinear(plain)
    for shape in ((rows, 6), (rows, 1, 6), (1, rows, 6)):
        x = torch.randn(shape)
        torch.testing.assert_close(few(x), plain(x))
        assert few(x).is_contiguous()
    assert few.weight is plain.weight


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_stacked_linear_layers_are_each_members_own(active, shape, bias):
    layers: list[nn.Module] = [nn.Linear(6, 10, bias=bias) for _ in range(MEMBERS)]
    weight = torch.stack([layer.weight.data.T for layer in layers])
    biases = torch.stack([layer.bias.data for layer in layers]).unsqueeze(1) if bias else None
    x = torch.randn(MEMBERS * shape[0], shape[1], 6)
    torch.testing.assert_close(StackedLinear(weight, biases, active)(x), together(layers, x))


@pytest.mark.parametrize("shape", SHAPES)
def test_stacked_embeddings_are_each_members_own(active, shape):
    layers: list[nn.Module] = [nn.Embedding(11, 6) for _ in range(MEMBERS)]
    ids = torch.randint(11, (MEMBERS * shape[0], shape[1]))
    whole = StackedEmbedding(torch.stack([layer.weight.data for layer in layers]), active)
    assert torch.equal(whole(ids), together(layers, ids))


@pytest.mark.parametrize("kind", [nn.LayerNorm, LlamaRMSNorm, lambda width: nn.LayerNorm(width, bias=False)])
@pytest.mark.parametrize("heads", [(), (4,)], ids=["tokens", "heads"])
def test_stacked_norms_are_each_members_own(active, kind, heads):
    layers = [kind(6) for _ in range(MEMBERS)]
    for layer in layers:
        for parameter in layer.parameters():
            parameter.data.normal_()
    x = torch.randn(MEMBERS * 2, 5, *heads, 6)
    weights = {
        name: torch.stack([layer.get_parameter(name).data for layer in layers]).unsqueeze(1)
        for name, _ in layers[0].named_parameters()
    }
    bare = kind(6)
    bare._parameters = {}
    torch.testing.assert_close(StackedNorm(bare, weights, active)(x), together(layers, x))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("base", [nn.Linear(6, 10), nn.Linear(6, 10, bias=False), Conv1D(10, 6)])
def test_an_adapted_layer_adds_each_members_own_product(active, shape, base):
    down, up = torch.randn(MEMBERS, 6, 2), torch.randn(MEMBERS, 2, 10)
    x = torch.randn(MEMBERS * shape[0], shape[1], 6)
    expected = torch.cat([base(part) + part @ a @ b for part, a, b in zip(x.chunk(MEMBERS), down, up, strict=True)])
    torch.testing.assert_close(AdaptedLinear(base, down, up, active)(x), expected)


def test_some_of_the_members_can_run_without_the_others(active):
    layers: list[nn.Module] = [nn.Linear(6, 10) for _ in range(MEMBERS)]
    whole = StackedLinear(
        torch.stack([layer.weight.data.T for layer in layers]),
        torch.stack([layer.bias.data for layer in layers]).unsqueeze(1),
        active,
    )
    x = torch.randn(4, 6)
    for first, last in ((1, 2), (0, 2), (2, 3)):
        active.members, active.count = slice(first, last), last - first
        torch.testing.assert_close(whole(x), together(layers[first:last], x))


@pytest.fixture
def adapted(make_model) -> Callable[..., PeftModel]:
    """A base with adapters `one` (rank 2 on three layers), `two` (rank 5, scaled another way, on one) and more."""

    def make(**extra: LoraConfig) -> PeftModel:
        configs = {
            "one": LoraConfig(r=2, lora_alpha=4, target_modules=TARGETS),
            "two": LoraConfig(r=5, lora_alpha=3, use_rslora=True, target_modules=["v_proj"]),
            **extra,
        }
        model = get_peft_model(make_model(10), configs["one"], adapter_name="one")
        for name in list(configs)[1:]:
            model.add_adapter(name, configs[name])
        generator = torch.Generator().manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        return model.eval()

    return make


@torch.no_grad()
def test_adapters_of_other_ranks_and_layers_and_none_share_a_base(adapted, make_model, active):
    model = adapted()
    ids = torch.randint(64, (2, 7))
    expected = []
    for name in ("two", "one"):
        model.set_adapter(name)
        expected.append(model(ids).logits)
    expected.insert(1, make_model(10)(ids).logits)
    network = shared_base(model.get_base_model(), ["two", None, "one"], active)
    got = network(ids.repeat(MEMBERS, 1)).logits.view(MEMBERS, 2, 7, -1)
    torch.testing.assert_close(got, torch.stack(expected), atol=1e-4, rtol=1e-4)
    assert (got[0] - got[1]).abs().max() > 0.1
    assert (got[2] - got[1]).abs().max() > 0.1


def test_a_shared_base_is_not_copied_and_its_model_stays_as_it_was(adapted, active):
    model = adapted()
    ids = torch.randint(64, (2, 7))
    before = model(ids).logits
    network = shared_base(model.get_base_model(), ["one", "two", None], active)
    theirs = {p.data_ptr() for p in model.parameters()}
    assert {p.data_ptr() for p in network.parameters()} <= theirs
    assert torch.equal(model(ids).logits, before)
    assert any("LoraLayer" in str(type(m).__mro__) for m in model.modules())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LoraConfig(r=2, use_dora=True, target_modules=TARGETS), "another kind than plain LoRA"),
        (LoraConfig(r=2, lora_bias=True, target_modules=TARGETS), "another kind than plain LoRA"),
        (LoraConfig(r=2, target_modules=["embed_tokens"]), "adapters of kind Embedding"),
        (LoraConfig(r=2, target_modules=TARGETS, modules_to_save=["norm"]), "adapters of kind ModulesToSaveWrapper"),
    ],
)
def test_adapters_of_other_kinds_are_not_stacked(adapted, active, config, message):
    model = adapted(other=config)
    with pytest.raises(NotStackable, match=message):
        shared_base(model.get_base_model(), ["one", "other"], active)


def test_merged_adapters_are_not_stacked(adapted, active):
    model = adapted()
    model.merge_adapter(["one"])
    with pytest.raises(NotStackable, match="merged adapters"):
        shared_base(model.get_base_model(), ["one", "two"], active)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "learned positions", "normalised heads"])
def test_stacked_models_are_each_member_and_hold_no_weight_twice(kind, make_model, make_other, active):
    models = [make_model(seed) if kind == "llama" else make_other(kind, seed) for seed in range(MEMBERS)]
    ids = torch.randint(64, (2, 7))
    expected = torch.stack([model(ids).logits for model in models])
    network = stacked(models, active)
    positions = torch.arange(7).repeat(MEMBERS * 2, 1)
    got = network(ids.repeat(MEMBERS, 1), position_ids=positions).logits.view(MEMBERS, 2, 7, -1)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    for model, logits in zip(models, expected, strict=True):
        torch.testing.assert_close(model(ids).logits, logits)  # the members themselves still work
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in (*network.parameters(), *(p for model in models for p in model.parameters()))
    }
    assert sum(storages.values()) == sum(p.nbytes for model in models for p in model.parameters())


def test_models_that_differ_are_not_stacked(make_model, make_other, active):
    for models in (
        [make_model(0), make_model(1, context=48)],
        [make_model(0), make_other("learned positions", 0)],
    ):
        with pytest.raises(NotStackable, match="members of different architectures"):
            stacked(models, active)


def test_models_with_layers_of_unknown_kinds_are_not_stacked(make_model, active):
    class Odd(nn.Linear):
        pass

    def odd(seed: int) -> LlamaForCausalLM:
        model = make_model(seed)
        model.model.layers[0].mlp.up_proj = Odd(32, 64, bias=False)
        return model

    models = [odd(0), odd(1)]
    before = [p.data_ptr() for p in models[1].parameters()]
    with pytest.raises(NotStackable, match="layers of kind Odd"):
        stacked(models, active)
    assert [p.data_ptr() for p in models[1].parameters()] == before
