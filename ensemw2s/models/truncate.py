"""Makes weak bases from a model: copies with fewer layers, each a folder with the model's tokenizer.

Layers go one at a time, always the one without which the loss on a few lines of English rises least (as in Shortened
LLaMA, arXiv 2402.02834, without its training afterwards). SmolLM2-135M has a loss of 3.3 nats on these lines, with 14
of its 30 layers chosen so 5.7, with its first 14 alone 20.9.

python -m ensemw2s.models.truncate MODEL OUTPUT --layers 16 14 12
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel

from ensemw2s.errors import ModelError
from ensemw2s.models.hub import locate
from ensemw2s.models.tokenizers import load_tokenizer

TEXT = (
    "The town began in the twelfth century, when monks built a small church beside the river. Merchants soon followed, "
    "and a hundred years later there was a market every Thursday.",
    "Plants turn light into chemical energy. Leaves take in red and blue light, and water is split into oxygen and "
    "hydrogen; the oxygen leaves through small openings.",
    "Maria bought three boxes of pencils with twelve pencils each. She gave nine pencils to her brother, so she has "
    "twenty-seven pencils left.",
    '"Where have you been?" asked the old man. "We waited for you until it was dark," he said, and shut the door.',
    "To install the program, download the file, open a terminal in its folder and type the name of the command.",
    "Paris is the capital of France, Rome is the capital of Italy, and Madrid is the capital of Spain.",
)
"""What the loss is measured on: lines of several kinds, the same for every model."""


def truncate(model: str, output: Path, layers: Sequence[int]) -> list[Path]:
    """Writes copies of a model with fewer layers.

    Args:
        model: Folder or hub id of a causal LM whose blocks are `model.layers`, as of the Llama family.
        output: Folder in which the copies' folders are made.
        layers: How many layers each copy has. The layers of a smaller copy are among those of a larger.

    Returns:
        The copies' folders, `layers-N`, from the largest.

    Raises:
        ModelError: If the model has other blocks, or not more than a copy.
    """
    location = locate(model, None)
    whole = AutoModelForCausalLM.from_pretrained(location.path, dtype="auto", **location.options()).eval()
    blocks = getattr(getattr(whole, "model", None), "layers", None)
    if blocks is None:
        raise ModelError(f"{model} is a {type(whole).__name__} without model.layers; name one of the Llama family")
    for wanted in layers:
        if not 0 < wanted < len(blocks):
            raise ModelError(
                f"{model} has {len(blocks)} layers: --layers must be from 1 to {len(blocks) - 1}, not {wanted}"
            )
    tokenizer = load_tokenizer(model)
    lines = [torch.tensor([tokenizer(line).input_ids]) for line in TEXT]
    folders = []
    written, types = whole.dtype, getattr(whole.config, "layer_types", None)
    for kept in shrink(whole.float(), lines, min(layers)):
        if len(kept) in layers:
            folders.append(output / f"layers-{len(kept)}")
            keep(whole, blocks, kept)
            if types:
                whole.config.layer_types = [types[layer] for layer in kept]
            whole.to(written).save_pretrained(folders[-1])
            whole.float()
            tokenizer.save_pretrained(folders[-1])
    return folders


def shrink(model: PreTrainedModel, lines: Sequence[torch.Tensor], smallest: int) -> Iterator[list[int]]:
    """Takes layers away, each time the one whose absence costs least; gives what is left, down to `smallest` layers.

    Args:
        model: The whole model; it is left with other layers.
        lines: Token ids, each [1, length].
        smallest: How many layers are left at the end.
    """
    blocks = model.model.layers
    kept = list(range(len(blocks)))
    while len(kept) > smallest:
        without = [[other for other in kept if other != layer] for layer in kept]
        costs = [loss(keep(model, blocks, some), lines) for some in without]
        kept = without[costs.index(min(costs))]
        print(f"{len(kept)} layers, loss {min(costs):.2f}: {' '.join(map(str, kept))}", flush=True)
        yield kept


def keep(model: PreTrainedModel, blocks: nn.ModuleList, kept: Sequence[int]) -> PreTrainedModel:
    """Leaves a model with some of its blocks, which are numbered anew."""
    model.model.layers = nn.ModuleList([blocks[layer] for layer in kept])
    for number, block in enumerate(model.model.layers):
        block.self_attn.layer_idx = number
    model.config.num_hidden_layers = len(kept)
    return model


@torch.no_grad()
def loss(model: PreTrainedModel, lines: Sequence[torch.Tensor]) -> float:
    """Mean negative log-likelihood per token, in nats."""
    told = [functional.cross_entropy(model(ids, use_cache=False).logits[0, :-1], ids[0, 1:]) for ids in lines]
    return float(torch.stack(told).mean())


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder or hub id")
    parser.add_argument("output", type=Path, help="folder for the copies")
    parser.add_argument("--layers", type=int, nargs="+", required=True, help="numbers of layers, one copy for each")
    wanted = parser.parse_args()
    for folder in truncate(wanted.model, wanted.output, wanted.layers):
        print(folder)


if __name__ == "__main__":
    main()
