import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from ensemw2s.errors import ModelError
from ensemw2s.models import loading, tiny

IDS = torch.tensor([[5, 9, 3, 30, 12]])


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.train_tokenizer(["sort these numbers 0 1 2 3 4 5 6 7 8 9 please"] * 9, 64)


@pytest.fixture(scope="module")
def model(tokenizer) -> LlamaForCausalLM:
    return tiny.create_tiny("tiny-weak", tokenizer, 0).eval()


@pytest.fixture
def saved(model, tokenizer, tmp_path) -> Path:
    loading.save_trained(model, tokenizer, tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_model_comes_back_with_its_tokenizer(model, tokenizer, saved):
    for loaded in (loading.load_causal_lm(saved), loading.load_trained(saved)):
        assert not loaded.training
        assert loaded.dtype == torch.float32
        torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, atol=0, rtol=0)
    assert loading.tokenizer_hash(loading.load_tokenizer(saved)) == loading.tokenizer_hash(tokenizer)


def test_nothing_pickled_is_written(saved):
    assert {file.suffix for file in saved.iterdir()} == {".json", ".safetensors"}


def test_gathered_weights_are_saved_once_where_they_are_tied(model, tokenizer, tmp_path):
    gathered = {name: weight.detach().clone() + 1 for name, weight in model.state_dict().items()}
    keys = set(gathered)
    loading.save_trained(model, tokenizer, tmp_path / "m", state_dict=gathered)
    assert set(gathered) == keys
    written = load_file(tmp_path / "m" / "model.safetensors")
    assert "lm_head.weight" not in written
    torch.testing.assert_close(written["model.norm.weight"], model.model.norm.weight + 1)
    loaded = loading.load_causal_lm(tmp_path / "m")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_weights_come_in_the_type_asked_for(saved):
    assert {p.dtype for p in loading.load_causal_lm(saved, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_facts_are_read_without_the_weights(saved, model, tokenizer, monkeypatch):
    monkeypatch.setattr(LlamaForCausalLM, "__init__", None)
    info = loading.model_info(saved)
    parameters = sum(p.numel() for p in model.parameters())
    assert info == loading.ModelInfo(parameters, len(tokenizer), 512, "LlamaForCausalLM")


def test_facts_of_a_model_in_several_files_count_all(model, tmp_path):
    model.save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert loading.model_info(tmp_path / "sharded").parameters == sum(p.numel() for p in model.parameters())
    torch.testing.assert_close(loading.load_causal_lm(tmp_path / "sharded")(IDS).logits, model(IDS).logits)


def test_the_vocabulary_is_that_of_the_logits(model):
    padded = LlamaForCausalLM(LlamaConfig(vocab_size=70, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    for one in (model, padded):
        assert loading.logits_vocabulary(one) == one(IDS).logits.shape[-1]
    padded.resize_token_embeddings(72)
    assert loading.logits_vocabulary(padded) == 72


def only_bin(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def drop_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


def edit_config(**values: object):
    def edit(folder: Path) -> None:
        tree = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(tree | values))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (only_bin, r"has only pickled weights \(pytorch_model\.bin\).* convert them to safetensors"),
        (lambda p: (p / "model.safetensors").unlink(), r"has no weights: no \*\.safetensors file is there"),
        (truncate, "a safetensors file is damaged .* copy or download it again"),
        (lambda p: (p / "model.safetensors").write_bytes(b"garbage" * 99), "a safetensors file is damaged"),
        (lambda p: (p / "config.json").write_text("{"), r"config\.json cannot be read"),
        (lambda p: (p / "config.json").unlink(), r"is no model: config\.json is missing"),
        (drop_a_tensor, "lacks 1 weights that LlamaForCausalLM needs, the first is model.layers.1.mlp.up_proj"),
        (edit_config(model_type="nonesuch"), "cannot be loaded: .*nonesuch"),
        (edit_config(hidden_size=64), "cannot be loaded: .*"),
        (shutil.rmtree, "there is no such folder"),
        (lambda p: (p / "adapter_config.json").write_text("{}"), "is a LoRA adapter; expected a full model"),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_one_clear_error(saved, damage, message):
    damage(saved)
    with pytest.raises(ModelError, match=message):
        loading.load_causal_lm(saved)


def test_code_of_a_repository_is_never_run(saved):
    edit_config(model_type="custom", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})(
        saved
    )
    (saved / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ModelError, match=r"cannot be loaded|needs code from its repository"):
        loading.load_causal_lm(saved)


@pytest.mark.slow
def test_a_model_that_is_no_causal_lm_is_refused(tmp_path):
    config = T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    with pytest.raises(ModelError, match=r"t5 cannot be loaded: .*T5Config"):
        loading.load_causal_lm(tmp_path / "t5")


def test_an_unreachable_hub_is_one_clear_error(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(HfApi, "model_info", unreachable)
    for load in (loading.load_causal_lm, loading.load_tokenizer, loading.model_info):
        with pytest.raises(ModelError, match=r"some-org/some-model .* the hub cannot be reached: no route to host"):
            load("some-org/some-model")


def test_a_full_model_has_no_base_to_replace(saved):
    with pytest.raises(ModelError, match=r"holds no adapters .* so it has no base to replace"):
        loading.load_trained(saved, base=saved)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_that_may_not_be_read_is_not_said_to_be_absent(saved, monkeypatch, name):
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != name and allowed(path, mode))
    for load in (loading.load_causal_lm, loading.model_info):
        with pytest.raises(ModelError, match=f"{name}: permission denied; let this user read it"):
            load(saved)
