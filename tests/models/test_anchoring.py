"""Models mixed with their bases: on disk and in memory alike, full weights and adapters."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from ensemw2s.config import Lora
from ensemw2s.errors import ModelError
from ensemw2s.models import loading, tiny
from ensemw2s.models.anchoring import anchor_saved, load_anchored, scale_adapter

IDS = torch.tensor([[5, 9, 3, 30, 12]])


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.train_tokenizer(["sort these numbers 0 1 2 3 4 5 6 7 8 9 please"] * 9, 64)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer) -> tuple[Path, Path]:
    """A base and a model that might have been trained from it."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "trained")):
        loading.save_trained(tiny.create_tiny("tiny-weak", tokenizer, seed), tokenizer, root / name)
    return root / "base", root / "trained"


@pytest.fixture
def copy(folders, tmp_path) -> Path:
    """The weights and config of the trained model alone, as an artifact has them."""
    kinds = shutil.ignore_patterns("tokenizer*", "special*", "chat*")
    return shutil.copytree(folders[1], tmp_path / "member", ignore=kinds)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return loading.load_causal_lm(folder).state_dict()


@pytest.mark.parametrize("anchor", [0.0, 0.25, 1.0])
def test_weights_lie_between_the_base_and_the_trained_model(folders, copy, anchor) -> None:
    base, trained = folders
    mixed = load_anchored(trained, str(base), anchor).state_dict()
    anchor_saved(copy, str(base), anchor)
    saved, first, last = weights(copy), weights(base), weights(trained)
    for name, tensor in mixed.items():
        torch.testing.assert_close(tensor, first[name] + anchor * (last[name] - first[name]), rtol=0, atol=1e-6)
        assert torch.equal(saved[name], tensor)
    assert (copy / "config.json").read_bytes() == (trained / "config.json").read_bytes()


def test_half_precision_on_disk_stays_half_and_is_mixed_in_full(folders, tmp_path, tokenizer) -> None:
    base, trained = folders
    half = tmp_path / "half"
    loading.save_trained(loading.load_causal_lm(trained, dtype=torch.bfloat16), tokenizer, half)
    expected = torch.lerp(weights(base)["lm_head.weight"], weights(half)["lm_head.weight"], 0.3).to(torch.bfloat16)
    assert torch.equal(
        load_anchored(half, str(base), 0.3, dtype=torch.bfloat16).state_dict()["lm_head.weight"], expected
    )
    anchor_saved(half, str(base), 0.3)
    assert torch.equal(weights(half)["lm_head.weight"], expected.float())
    assert json.loads((half / "config.json").read_text())["dtype"] == "bfloat16"


def test_another_base_is_refused(folders, tmp_path, tokenizer) -> None:
    other = tmp_path / "other"
    loading.save_trained(tiny.create_tiny("tiny-strong", tokenizer, 0), tokenizer, other)
    with pytest.raises(ModelError, match=r"cannot be mixed with its base .*other: the base has no "):
        load_anchored(folders[1], str(other), 0.5)


def test_of_adapters_only_the_scale_changes(folders, tmp_path, tokenizer) -> None:
    base = folders[0]
    trained = loading.attach_lora(loading.load_causal_lm(base), Lora(rank=2, alpha=4), seed=3)
    with torch.no_grad():
        for name, weight in trained.named_parameters():
            if "lora_B" in name:
                weight.normal_(generator=torch.Generator().manual_seed(len(name)))
    saved = tmp_path / "expert"
    loading.save_trained(trained, tokenizer, saved, base={"path": str(base), "revision": None})
    adapters = (saved / "adapter_model.safetensors").read_bytes()
    scaled = loading.load_trained(saved)
    scale_adapter(scaled, "default", 0.25)
    anchor_saved(saved, str(base), 0.25)
    assert json.loads((saved / "adapter_config.json").read_text())["lora_alpha"] == 1.0
    assert (saved / "adapter_model.safetensors").read_bytes() == adapters
    merged = loading.load_trained(saved)
    with torch.no_grad():
        assert torch.equal(merged(IDS).logits, scaled(IDS).logits)
        assert not torch.equal(merged(IDS).logits, trained(IDS).logits)
        anchor_saved(saved, str(base), 0.0)
        assert torch.equal(loading.load_trained(saved)(IDS).logits, loading.load_causal_lm(base)(IDS).logits)
