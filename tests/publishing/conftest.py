"""A run as version 0.1 left it, with a student of LoRA adapters whose base lies in a folder of its own."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from transformers import PreTrainedTokenizerFast

from ensemw2s.config import Lora
from ensemw2s.models import loading, tiny

OLDER_RUN = Path(__file__).parent.parent / "older_run"


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny.train_tokenizer(["sort 0 1 2 3 4 5 6 7 8 9"] * 5, 40)


@pytest.fixture(scope="session")
def base(tmp_path_factory, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("bases") / "strong-base"
    loading.save_trained(tiny.create_tiny("tiny-strong", tokenizer, 3), tokenizer, folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n\n# A base\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def adapters(base, tokenizer) -> Callable[[Path, Lora], Path]:
    """Writes adapters with weights as after a training."""

    def write(folder: Path, lora: Lora) -> Path:
        model = loading.attach_lora(loading.load_causal_lm(base), lora, seed=0)
        generator = torch.Generator().manual_seed(1)
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.data = torch.randn(weight.shape, generator=generator) * 0.1
        loading.save_trained(model, tokenizer, folder, base=loading.BaseReference(path=str(base), revision=None))
        return folder

    return write


@pytest.fixture
def run(tmp_path, base, adapters) -> Path:
    folder = tmp_path / "my-run"
    shutil.copytree(OLDER_RUN, folder)
    tree = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    tree["models"]["strong"]["base"] = str(base)
    tree["data"]["prompt_template"] = "Q: {prompt}\nA:"
    (folder / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    adapters(folder / "students/student_ensemw2s", Lora(rank=4))
    return folder
