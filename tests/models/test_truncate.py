import string
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ensemw2s.config.study import load_study
from ensemw2s.data.sources import read_source
from ensemw2s.errors import ModelError
from ensemw2s.models import tiny
from ensemw2s.models.info import model_info
from ensemw2s.models.truncate import TEXT, truncate
from ensemw2s.pipeline import preflight
from ensemw2s.study.cells import expand


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model of the family of SmolLM2 with three layers."""
    folder = tmp_path_factory.mktemp("model")
    words = ["Sort these words in ascending order: one, two"] * 3
    tokenizer = tiny.train_tokenizer(words, 200, also=string.printable + "’")
    tiny.create_tiny("tiny-strong", tokenizer, 0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def silenced(model: Path, layer: int) -> PreTrainedModel:
    """The whole model with a layer that adds nothing, as if it were not there."""
    whole = AutoModelForCausalLM.from_pretrained(model)
    whole.model.layers[layer].self_attn.o_proj.weight.zero_()
    whole.model.layers[layer].mlp.down_proj.weight.zero_()
    return whole


@torch.no_grad()
def test_the_layer_that_is_missed_least_goes_first(model, tmp_path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    lines = [tokenizer(line, return_tensors="pt").input_ids for line in TEXT]
    without = [silenced(model, layer) for layer in range(3)]
    losses = [sum(float(whole(ids, labels=ids).loss) for ids in lines) for whole in without]
    (folder,) = truncate(str(model), tmp_path, [2])
    short = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(short(lines[0]).logits, without[losses.index(min(losses))](lines[0]).logits)
    assert model_info(str(folder)).parameters < model_info(str(model)).parameters


def test_a_smaller_copy_has_layers_of_the_larger(model, tmp_path) -> None:
    larger, smaller = [
        AutoModelForCausalLM.from_pretrained(folder).model.layers for folder in truncate(str(model), tmp_path, [1, 2])
    ]
    assert (len(larger), len(smaller)) == (2, 1)
    kept = smaller[0].mlp.down_proj.weight
    assert any(torch.equal(kept, layer.mlp.down_proj.weight) for layer in larger)


@pytest.mark.parametrize("layers", [0, 3])
def test_a_model_is_not_made_as_deep_as_it_is_or_empty(model, tmp_path, layers: int) -> None:
    with pytest.raises(ModelError, match=f"has 3 layers: --layers must be from 1 to 2, not {layers}"):
        truncate(str(model), tmp_path, [layers])


def test_the_study_of_a_pretrained_student_takes_local_folders(model, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    truncate(str(model), Path("weak-bases"), [1, 2])
    overrides = [
        f"set.models.strong.base={model}",
        "set.models.weak=[{base: weak-bases/layers-1, lora: {rank: 2}}, {base: weak-bases/layers-2, lora: {rank: 2}}]",
        "set.data.max_prompt_tokens=400",  # this tokenizer knows few words
    ]
    cell = expand(load_study("smollm2", overrides))[0]
    preflight.check(cell.config)
    assert cell.graph.corpus is None, "models that are given are not pre-trained"
    row = read_source(cell.config.data.source, seed=0, n_easy=1, n_hard=0).to_pylist()[0]
    statements, question = row["prompt"].removesuffix("\nAnswer:").split("\n")
    asked = question.removeprefix("Who ").removesuffix("?")
    assert [said.split()[0] for said in statements.split(". ") if said.rstrip(".").endswith(asked)] == [row["answer"]]
