import runpy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from ensemw2s import preflight
from ensemw2s.config_study import load_study
from ensemw2s.data.sources import read_source
from ensemw2s.errors import ModelError
from ensemw2s.models import tiny
from ensemw2s.models.info import model_info
from ensemw2s.study.cells import expand

STUDIES = Path(__file__).parents[3] / "configs" / "studies"
truncate = runpy.run_path(str(STUDIES / "truncate.py"))["truncate"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model of the family of SmolLM2 with three layers."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = tiny.train_tokenizer(["Sort these words in ascending order: one, two"] * 3, 200)
    tiny.create_tiny("tiny-strong", tokenizer, 0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def test_a_truncated_model_gives_what_the_first_layers_of_the_whole_give(model, tmp_path) -> None:
    short = AutoModelForCausalLM.from_pretrained(truncate(str(model), tmp_path, 2))
    whole = AutoModelForCausalLM.from_pretrained(model)
    ids = torch.tensor([[1, 7, 9, 4]])
    hidden = whole.model(ids, output_hidden_states=True, use_cache=False).hidden_states[2]
    expected = whole.lm_head(whole.model.norm(hidden))
    torch.testing.assert_close(short(ids, use_cache=False).logits, expected)
    assert model_info(str(tmp_path / "layers-2")).parameters < model_info(str(model)).parameters


@pytest.mark.parametrize("layers", [0, 3])
def test_a_model_is_not_made_as_deep_as_it_is_or_empty(model, tmp_path, layers: int) -> None:
    with pytest.raises(ModelError, match=f"has 3 layers: --layers must be from 1 to 2, not {layers}"):
        truncate(str(model), tmp_path, layers)


def test_the_study_of_a_pretrained_student_takes_local_folders(model, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for layers in (1, 2):
        truncate(str(model), Path("weak-bases"), layers)
    overrides = [
        f"set.models.strong.base={model}",
        "set.models.weak=[{base: weak-bases/layers-1, lora: {rank: 2}}, {base: weak-bases/layers-2, lora: {rank: 2}}]",
    ]
    cell = expand(load_study(STUDIES / "smollm2.yaml", overrides))[0]
    preflight.check(cell.config)
    assert cell.graph.corpus is None, "models that are given are not pre-trained"
    row = read_source(cell.config.data.source, seed=0, n_easy=1, n_hard=0).to_pylist()[0]
    listed = row["prompt"].split(": ")[1].split("\n")[0].split(", ")
    direction = "descending" in row["prompt"]
    assert row["prompt"].endswith("\nSorted:")
    assert row["answer"] == ", ".join(sorted(listed, reverse=direction))
