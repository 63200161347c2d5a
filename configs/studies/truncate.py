"""Makes weak bases from a model: copies with its first layers only, each a folder with the model's tokenizer.

python configs/studies/truncate.py MODEL OUTPUT --layers 6 9 12
"""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import nn
from transformers import AutoModelForCausalLM

from ensemw2s.errors import ModelError
from ensemw2s.models.hub import locate
from ensemw2s.models.tokenizers import load_tokenizer


def truncate(model: str, output: Path, layers: int) -> Path:
    """Writes a copy of a model with its first layers only.

    Args:
        model: Folder or hub id of a causal LM whose blocks are `model.layers`, as of the Llama family.
        output: Folder in which the copy's folder is made.
        layers: How many layers it has.

    Returns:
        The copy's folder, `layers-N`.

    Raises:
        ModelError: If the model has other blocks, or fewer.
    """
    location = locate(model, None)
    whole = AutoModelForCausalLM.from_pretrained(location.path, dtype="auto", **location.options())
    blocks = getattr(getattr(whole, "model", None), "layers", None)
    if blocks is None:
        raise ModelError(f"{model} is a {type(whole).__name__} without model.layers; name one of the Llama family")
    if not 0 < layers < len(blocks):
        raise ModelError(
            f"{model} has {len(blocks)} layers: --layers must be from 1 to {len(blocks) - 1}, not {layers}"
        )
    whole.model.layers = nn.ModuleList(list(blocks)[:layers])
    whole.config.num_hidden_layers = layers
    if getattr(whole.config, "layer_types", None):
        whole.config.layer_types = whole.config.layer_types[:layers]
    folder = output / f"layers-{layers}"
    whole.save_pretrained(folder)
    load_tokenizer(model).save_pretrained(folder)
    return folder


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder or hub id")
    parser.add_argument("output", type=Path, help="folder for the copies")
    parser.add_argument("--layers", type=int, nargs="+", required=True, help="how many layers, a copy each")
    wanted = parser.parse_args()
    for layers in wanted.layers:
        print(truncate(wanted.model, wanted.output, layers))


if __name__ == "__main__":
    main()
