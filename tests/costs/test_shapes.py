"""Sizes from config.json alone are those of the models that are made of it, adapters included."""

import json

import pytest
from transformers import GPT2Config, LlamaConfig

from ensemw2s.config import Lora
from ensemw2s.costs.shapes import measure, shape_of, tiny_shape
from ensemw2s.errors import ModelError
from ensemw2s.models import tiny
from ensemw2s.models.adapters import attach_lora

WIDE = LlamaConfig(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
)


def network():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(WIDE)


def test_a_folder_with_config_json_alone_has_the_sizes_of_its_model(tmp_path):
    WIDE.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    shape, model = shape_of(str(tmp_path)), network()
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.multiplied == shape.parameters - 50 * 32, "the embedding is looked up, the output layer multiplied"
    assert (shape.layers, shape.hidden, shape.feed_forward, shape.vocabulary) == (2, 32, 48, 50)
    assert shape.context == WIDE.max_position_embeddings
    assert (shape.queries, shape.keys) == (4 * 16, 2 * 16)
    assert shape.largest == 4 * 16 * 32


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]])
def test_adapters_are_as_many_weights_as_peft_makes(tmp_path, targets):
    WIDE.save_pretrained(tmp_path)
    lora = Lora(rank=3, target_modules=targets)
    model = attach_lora(network(), lora, 0)
    made = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert shape_of(str(tmp_path)).adapters(lora) == made > 0
    assert shape_of(str(tmp_path)).adapters(None) == 0


def test_tied_embeddings_count_once_and_are_multiplied():
    for name in tiny.TINY_ARCHITECTURES:
        shape = tiny_shape(name, 64)
        assert shape == measure(tiny.tiny_config(name, 64)), "as torch counts them"
        assert shape.parameters == shape.multiplied == tiny.tiny_parameters(name, 64)
        assert shape.context == tiny.CONTEXT


def test_layers_of_other_architectures_are_found(tmp_path):
    GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=20, n_positions=16).save_pretrained(tmp_path)
    shape = shape_of(str(tmp_path))
    assert (shape.hidden, shape.feed_forward, shape.keys, len(shape.linears)) == (8, 32, 8, 4)
    assert shape_of(str(tmp_path)).context == 16


def test_a_folder_that_is_no_model_says_so(tmp_path):
    with pytest.raises(ModelError, match=r"is no model: config\.json is missing"):
        shape_of(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    with pytest.raises(ModelError, match="cannot be loaded"):
        shape_of(str(tmp_path))
