"""What leaves a run answers like what is in it, and needs nothing of ours."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from ensemw2s.config import Lora
from ensemw2s.errors import ConfigError, ModelError
from ensemw2s.models import loading
from ensemw2s.publishing.export import export

IDS = torch.tensor([[1, 5, 9, 13, 7, 21, 8]])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dict


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def test_the_adapters_of_a_runs_student_are_merged_into_plain_weights(run, base, tmp_path):
    found = export(run, tmp_path / "out")
    assert (found.source, found.merged, found.dtype) == (run / "students/student_ensemw2s", True, "float32")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    torch.testing.assert_close(logits(plain), logits(loading.load_trained(found.source)), rtol=1e-4, atol=1e-4)
    assert (logits(plain) - logits(loading.load_causal_lm(base))).abs().max() > 0.1
    assert weights(tmp_path / "out").keys() == weights(base).keys()
    assert not list((tmp_path / "out").glob("adapter*"))
    read = AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    assert read("sort 3 1 2")["input_ids"] == AutoTokenizer.from_pretrained(base)("sort 3 1 2")["input_ids"]
    assert ModelCard.load(tmp_path / "out/README.md").data.library_name == "transformers"


def test_the_type_of_the_weights_is_that_of_the_base_or_as_asked(run, base, tmp_path, tokenizer):
    half = tmp_path / "half"
    loading.save_trained(loading.load_causal_lm(base, dtype=torch.bfloat16), tokenizer, half)
    file = run / "students/student_ensemw2s/adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(half)}))
    assert export(run, tmp_path / "auto").dtype == "bfloat16"
    assert {weight.dtype for weight in weights(tmp_path / "auto").values()} == {torch.bfloat16}
    assert export(run, tmp_path / "full", "float32").dtype == "float32"
    assert {weight.dtype for weight in weights(tmp_path / "full").values()} == {torch.float32}
    assert export(tmp_path / "full", tmp_path / "again", "float16").dtype == "float16"


def test_full_weights_are_copied_and_files_that_only_other_tools_read_come_along(run, base, tmp_path, tokenizer):
    (base / "tokenizer.model").write_bytes(b"pieces")
    export(base, tmp_path / "copy")
    assert (tmp_path / "copy/model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()
    assert not ModelCard.load(tmp_path / "copy/README.md").data.license  # the base's own card is not this model's
    export(run, tmp_path / "merged")
    assert (tmp_path / "merged/tokenizer.model").read_bytes() == b"pieces"


def test_what_cannot_be_exported_is_refused_with_what_to_do(run, base, tmp_path, tokenizer):
    for place, said in (
        (run / "ensemble", "export its run's student"),
        (run / "rounds", "holds no trained model"),
        (tmp_path / "nowhere", "holds no trained model"),
    ):
        with pytest.raises(ConfigError, match=said):
            export(place, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(ConfigError, match="exists; name a new folder"):
        export(run, tmp_path / "full")


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_adapters_that_set_shared_embeddings_apart_are_refused(adapters, tmp_path, target):
    apart = adapters(tmp_path / "apart", Lora(rank=2, target_modules=[target]))
    with pytest.raises(ModelError, match="one of two embeddings that the base shares"):
        export(apart, tmp_path / "out")
    assert not (tmp_path / "out").exists()
