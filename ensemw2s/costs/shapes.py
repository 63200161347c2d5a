"""Sizes of a model from its config.json alone: the network is made without memory for weights, and counted.

Apart from `models.info`, which reads the weights that are there: what a run will cost is asked before they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ensemw2s.config import Lora
from ensemw2s.errors import ModelError
from ensemw2s.models.hub import locate
from ensemw2s.models.info import load_error
from ensemw2s.models.tiny import CONTEXT, TINY_ARCHITECTURES, tiny_parameters


@dataclass(frozen=True)
class Shape:
    """Sizes of a causal LM.

    Attributes:
        parameters: Weights, tied ones once.
        multiplied: Of these, weights that every token is multiplied with: all but an embedding that is only looked up.
        largest: Weights of the largest tensor.
        linears: Inputs and outputs of every linear layer but the output layer, by name.
        layers: Layers.
        hidden: Width of the residual stream.
        feed_forward: Width inside a layer's feed-forward part.
        queries: Query heads times their size.
        keys: Key heads times their size; as many are the values.
        vocabulary: Tokens of the output layer.
        context: Longest sequence, in tokens; None without a limit.
    """

    parameters: int
    multiplied: int
    largest: int
    linears: tuple[tuple[str, int, int], ...]
    layers: int
    hidden: int
    feed_forward: int
    queries: int
    keys: int
    vocabulary: int
    context: int | None

    def adapters(self, lora: Lora | None) -> int:
        """Weights of LoRA adapters (Hu et al. 2021): rank × (inputs + outputs) of each layer that gets one."""
        if lora is None:
            return 0
        wanted = lora.target_modules
        return sum(
            lora.rank * (inputs + outputs)
            for name, inputs, outputs in self.linears
            if wanted == "all-linear" or any(name == one or name.endswith(f".{one}") for one in wanted)
        )


def tiny_shape(name: str, vocabulary: int) -> Shape:
    """Sizes of a tiny model; `vocabulary` is that of its tokenizer. Written out, so that no torch is imported."""
    tiny = TINY_ARCHITECTURES[name]
    hidden, inside = tiny.hidden, tiny.feed_forward
    layer = [(f"self_attn.{part}_proj", hidden, hidden) for part in "qkvo"]
    layer += [(f"mlp.{part}_proj", inside, hidden) for part in ("gate", "up")]
    layer += [("mlp.down_proj", hidden, inside)]
    parameters = tiny_parameters(name, vocabulary)
    return Shape(
        parameters=parameters,
        multiplied=parameters,  # the embedding is the output layer, too
        largest=tiny.hidden * max(vocabulary, tiny.feed_forward),
        linears=tuple((f"model.layers.{i}.{part}", a, b) for i in range(tiny.layers) for part, a, b in layer),
        layers=tiny.layers,
        hidden=tiny.hidden,
        feed_forward=tiny.feed_forward,
        queries=tiny.hidden,
        keys=tiny.hidden,
        vocabulary=vocabulary,
        context=CONTEXT,
    )


@lru_cache(maxsize=32)
def shape_of(path: str, revision: str | None = None) -> Shape:
    """Sizes of a model in a folder or on the hub; of its files only config.json is read.

    Raises:
        ModelError: If there is no such model, or its config cannot be used.
    """
    from transformers import AutoConfig

    location = locate(path, revision)
    if location.is_folder and not (Path(location.path) / "config.json").exists():
        raise ModelError(f"folder {path} is no model: config.json is missing")
    try:
        return measure(AutoConfig.from_pretrained(location.path, **location.options()))
    except ModelError:
        raise
    except Exception as error:
        raise load_error(location.path, error) from error


def measure(config: object) -> Shape:
    """Sizes of the model that a transformers config describes."""
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedConfig
    from transformers.pytorch_utils import Conv1D

    assert isinstance(config, PreTrainedConfig)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    linears = []
    for name, module in model.named_modules():
        if module is not head and isinstance(module, torch.nn.Linear | Conv1D):
            rows, columns = module.weight.shape
            linears.append((name, rows, columns))
    parameters = sum(p.numel() for p in model.parameters())
    tied = head is None or head.weight is embedding.weight
    text = config.get_text_config()
    heads = text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    return Shape(
        parameters=parameters,
        multiplied=parameters - (0 if tied else embedding.weight.numel()),
        largest=max(p.numel() for p in model.parameters()),
        linears=tuple(linears),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        feed_forward=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        queries=heads * size,
        keys=(getattr(text, "num_key_value_heads", None) or heads) * size,
        vocabulary=text.vocab_size,
        context=getattr(text, "max_position_embeddings", None),
    )
