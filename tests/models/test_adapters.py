import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from ensemw2s.config import Lora
from ensemw2s.errors import ModelError
from ensemw2s.models import adapters, loading, tiny
from ensemw2s.storage import remote

IDS = torch.tensor([[5, 9, 3, 30, 12]])


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.train_tokenizer(["sort these numbers 0 1 2 3 4 5 6 7 8 9 please"] * 9, 64)


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("model") / "base"
    loading.save_trained(tiny.create_tiny("tiny-weak", tokenizer, 0), tokenizer, folder)
    return folder


@pytest.fixture
def trained(base):
    """A PEFT model whose adapters do something."""
    model = loading.attach_lora(loading.load_causal_lm(base), Lora(rank=2, alpha=4), seed=3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(generator=torch.Generator().manual_seed(len(name)))
    return model.eval()


@pytest.fixture
def saved(trained, tokenizer, base, tmp_path) -> Path:
    loading.save_trained(trained, tokenizer, tmp_path / "expert", base={"path": str(base), "revision": None})
    return tmp_path / "expert"


def lora(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in model.named_parameters() if "lora_" in name}


def test_the_same_seed_gives_the_same_adapters_and_leaves_the_random_state_alone(base):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = lora(loading.attach_lora(loading.load_causal_lm(base), Lora(rank=2), seed=7))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    second = lora(loading.attach_lora(loading.load_causal_lm(base), Lora(rank=2), seed=7))
    other = lora(loading.attach_lora(loading.load_causal_lm(base), Lora(rank=2), seed=8))
    assert first.keys() == second.keys() == other.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_only_adapters_are_trainable_and_fresh_ones_change_nothing(base):
    plain = loading.load_causal_lm(base)
    model = loading.attach_lora(loading.load_causal_lm(base), Lora(rank=2), seed=0)
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == set(lora(model))
    torch.testing.assert_close(model(IDS).logits, plain(IDS).logits)


def test_rank_scale_and_layers_are_those_of_the_config(base):
    settings = Lora(rank=3, alpha=6, dropout=0.1, target_modules=["q_proj", "v_proj"])
    model = loading.attach_lora(loading.load_causal_lm(base), settings, seed=0)
    assert {name.split(".")[-4] for name in lora(model)} == {"q_proj", "v_proj"}
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout, config.task_type) == (3, 6, 0.1, "CAUSAL_LM")


def test_adapters_come_back_with_their_base(trained, saved, base):
    config = json.loads((saved / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (str(base), None)
    assert sorted(p.name for p in saved.iterdir() if p.suffix == ".safetensors") == ["adapter_model.safetensors"]
    loaded = loading.load_trained(saved)
    assert not loaded.training
    assert not any(weight.requires_grad for weight in lora(loaded).values())
    torch.testing.assert_close(loaded(IDS).logits, trained(IDS).logits)


def test_gathered_weights_are_saved_in_place_of_the_models_own(trained, tokenizer, base, tmp_path):
    gathered = {name: weight.detach().clone() for name, weight in trained.state_dict().items()}
    expected = trained(IDS).logits
    with torch.no_grad():
        for weight in lora(trained).values():
            weight.zero_()
    reference = {"path": str(base), "revision": None}
    loading.save_trained(trained, tokenizer, tmp_path / "e", state_dict=gathered, base=reference)
    torch.testing.assert_close(loading.load_trained(tmp_path / "e")(IDS).logits, expected)


def test_loaded_adapters_can_be_trained_on_and_remember_their_base(saved, base, tokenizer, tmp_path):
    model = loading.load_trained(saved, trainable=True)
    assert all(weight.requires_grad for weight in lora(model).values())
    loading.save_trained(model, tokenizer, tmp_path / "next")
    config = json.loads((tmp_path / "next" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)


def test_another_base_or_one_in_memory_can_be_used(saved, trained, tokenizer, tmp_path):
    expected = trained(IDS).logits
    config = json.loads((saved / "adapter_config.json").read_text())
    base = config["base_model_name_or_path"]
    (saved / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/gone"}))
    with pytest.raises(ModelError, match="/gone: there is no such folder"):
        loading.load_trained(saved)
    torch.testing.assert_close(loading.load_trained(saved, base=base)(IDS).logits, expected)
    in_memory = loading.load_causal_lm(base)
    loaded = loading.load_trained(saved, base=in_memory)
    assert loaded.get_base_model() is in_memory
    torch.testing.assert_close(loaded(IDS).logits, expected)


def test_a_base_with_adapters_is_not_given_more_by_mistake(saved, trained):
    with pytest.raises(ModelError, match="has adapters in its layers already"):
        loading.load_trained(saved, base=trained.get_base_model())
    with pytest.raises(ModelError, match="has adapters in its layers already"):
        loading.attach_lora(trained.get_base_model(), Lora(rank=2), seed=0)


def test_a_relative_base_is_looked_for_beside_the_adapter(saved, base, trained, monkeypatch, tmp_path):
    config = json.loads((saved / "adapter_config.json").read_text())
    (tmp_path / "bases").symlink_to(base.parent)
    (saved / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "../bases/base"}))
    monkeypatch.chdir("/")
    torch.testing.assert_close(loading.load_trained(saved)(IDS).logits, trained(IDS).logits)


def test_adapters_of_unknown_base_are_not_saved(tokenizer, tmp_path):
    model = loading.attach_lora(tiny.create_tiny("tiny-weak", tokenizer, 0), Lora(rank=2), seed=0)
    with pytest.raises(ModelError, match="the base of the adapters is not known"):
        loading.save_trained(model, tokenizer, tmp_path / "e")


def test_layers_that_are_not_there_are_named_with_those_that_are(base):
    with pytest.raises(ModelError, match=r"target_modules \['query'\]: no such layers .* 'q_proj'"):
        loading.attach_lora(loading.load_causal_lm(base), Lora(target_modules=["query"]), seed=0)


def drop_a_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "adapter_model.safetensors")
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "adapter_model.safetensors").write_bytes(b"x" * 50), "adapter_model.safetensors is damaged"),
        (lambda p: (p / "adapter_model.safetensors").unlink(), "adapter_model.safetensors is missing"),
        (
            lambda p: (p / "adapter_model.safetensors").rename(p / "adapter_model.bin"),
            "pickled weights are not loaded",
        ),
        (lambda p: (p / "adapter_config.json").write_text("{"), "adapter_config.json cannot be read"),
        (drop_a_tensor, "lacks 1 weights, the first is base_model.model.model.layers.0"),
    ],
)
def test_damaged_adapters_are_refused_with_the_reason(saved, damage, message):
    damage(saved)
    with pytest.raises(ModelError, match=message):
        loading.load_trained(saved)


def test_adapters_of_a_larger_base_do_not_fit(saved, tokenizer):
    strong = tiny.create_tiny("tiny-strong", tokenizer, 0)
    assert isinstance(strong, LlamaForCausalLM)
    with pytest.raises(ModelError, match="does not fit its base LlamaForCausalLM"):
        loading.load_trained(saved, base=strong)


def test_adapters_of_a_base_in_object_storage_find_it_from_another_machine(
    bucket, trained, tokenizer, base, tmp_path, monkeypatch
):
    store = f"s3://{bucket.name}"
    remote.push(base, remote.local(f"{store}/base"))
    reference = {"path": str(remote.local(f"{store}/base")), "revision": None}
    loading.save_trained(trained, tokenizer, tmp_path / "expert", base=reference)
    assert json.loads((tmp_path / "expert" / "adapter_config.json").read_text())["base_model_name_or_path"] == (
        f"{store}/base"
    )
    remote.push(tmp_path / "expert", remote.local(f"{store}/expert"))
    monkeypatch.setenv("ENSEMW2S_SCRATCH", str(tmp_path / "other machine"))
    again = loading.load_trained(remote.local(f"{store}/expert"))
    torch.testing.assert_close(again(IDS).logits, trained(IDS).logits)


def test_a_base_that_moved_is_named_with_the_place_where_to_say_so(tmp_path):
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "/old/place"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError) as told:
        adapters.base_info(tmp_path)
    for part in (f"adapter {tmp_path} is for a base", "/old/place", "base_model_name_or_path", "adapter_config.json"):
        assert part in str(told.value)
