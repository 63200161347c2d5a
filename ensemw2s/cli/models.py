"""What models are, for people: folders or hub ids come in, their facts go out and are printed.

Apart from `loading` because nothing here is needed to train or to decode, and no weight is read: sizes come from the
headers of safetensors files, and those of the embedded family from a formula.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ensemw2s.config import Pretraining
from ensemw2s.ensemble.manifest import MANIFEST, TOKENIZER, read_manifest
from ensemw2s.evaluation.wording import NOTHING, amount
from ensemw2s.labeling.inputs import refuse_run
from ensemw2s.models.adapters import ADAPTER_WEIGHTS, adapter_base, base_info, read_adapter_config
from ensemw2s.models.info import ADAPTER_CONFIG, ModelInfo, model_info
from ensemw2s.models.tiny import CONTEXT, TINY_ARCHITECTURES, tiny_parameters
from ensemw2s.models.tokenizers import load_tokenizer, tokenizer_hash
from ensemw2s.storage import remote


@dataclass(frozen=True)
class ModelFacts:
    """A row of `ensemw2s models`.

    Attributes:
        name: Folder or hub id; of an ensemble's member the folder inside it.
        kind: What it is: model, adapters and their base, or member of an ensemble.
        info: Parameters, vocabulary, context and architecture (of adapters: of their base).
        tokenizer: `tokenizer_hash` of its tokenizer; equal ones can vote together.
    """

    name: str
    kind: str
    info: ModelInfo
    tokenizer: str


def facts(path: str, revision: str | None = None) -> list[ModelFacts]:
    """Facts of a model; of an ensemble artifact those of each member that votes.

    Args:
        path: Folder (full model, LoRA adapters or ensemble artifact) or hub id.
        revision: Git revision on the hub.

    Raises:
        ModelError: If it cannot be loaded.
        ConfigError: If it is a whole run.
        ArtifactError: If the ensemble's own description is damaged.
    """
    folder = remote.pull(remote.local(path))
    if (folder / MANIFEST).exists():
        return _of_ensemble(folder)
    refuse_run("model", folder)
    if (folder / ADAPTER_CONFIG).exists():
        return [_of_adapters(folder, tokenizer_hash(load_tokenizer(folder)))]
    info = model_info(path, revision)
    return [ModelFacts(path, "model", info, tokenizer_hash(load_tokenizer(path, revision)))]


def _of_ensemble(folder: Path) -> list[ModelFacts]:
    manifest = read_manifest(folder, mixed=True)
    places = manifest.tokenizers or [TOKENIZER]
    hashes = {place: tokenizer_hash(load_tokenizer(folder / place)) for place in places}
    total, rows = sum(member.weight for member in manifest.voters), []
    for member in manifest.voters:
        where = folder / str(member.path)
        tokenizer = hashes[member.tokenizer or TOKENIZER]
        found = (
            _of_adapters(where, tokenizer)
            if (where / ADAPTER_CONFIG).exists()
            else ModelFacts(str(where), "model", model_info(where), tokenizer)
        )
        kind = f"{found.kind}, round {member.round}, {member.weight / total:.1%} of the vote"
        rows.append(ModelFacts(found.name, kind, found.info, tokenizer))
    return rows


def _of_adapters(folder: Path, tokenizer: str) -> ModelFacts:
    rank = getattr(read_adapter_config(folder), "r", "?")
    base, info = adapter_base(folder), base_info(folder)
    size = (folder / ADAPTER_WEIGHTS).stat().st_size if (folder / ADAPTER_WEIGHTS).exists() else 0
    kind = f"LoRA of rank {rank} ({size / 1e6:.2g} MB) on {base['path']}"
    return ModelFacts(str(folder), kind, info, tokenizer)


def as_json(found: list[ModelFacts]) -> str:
    """Facts of models as JSON: a list with an object for each."""
    rows = [{"name": one.name, "kind": one.kind, **asdict(one.info), "tokenizer": one.tokenizer} for one in found]
    return json.dumps(rows, indent=2)


def embedded_as_json() -> str:
    """The embedded family as JSON: a list with an object for each model."""
    vocabulary = Pretraining().vocabulary
    return json.dumps(
        [
            {
                "name": name,
                "architecture": "LlamaForCausalLM",
                "layers": sizes.layers,
                "hidden": sizes.hidden,
                "heads": sizes.heads,
                "context": CONTEXT,
                "vocabulary": vocabulary,
                "parameters": tiny_parameters(name, vocabulary),
            }
            for name, sizes in TINY_ARCHITECTURES.items()
        ],
        indent=2,
    )


def print_embedded(console: Console) -> None:
    """Prints the embedded family: architecture, sizes, and parameters with the vocabulary that is the default."""
    vocabulary = Pretraining().vocabulary
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("Model", "Architecture", "Layers", "Hidden", "Heads", "Context", "Parameters"):
        table.add_column(heading, justify="left" if heading in ("Model", "Architecture") else "right", no_wrap=True)
    for name, sizes in TINY_ARCHITECTURES.items():
        numbers = (sizes.layers, sizes.hidden, sizes.heads, CONTEXT)
        table.add_row(name, "LlamaForCausalLM", *map(str, numbers), amount(tiny_parameters(name, vocabulary)))
    console.print(table)
    console.print(
        f"Parameters with a vocabulary of {vocabulary} tokens (models.pretraining.vocabulary). A run pre-trains these "
        "itself, on text of the domain: models.weak.0.base=tiny-weak, models.strong.base=tiny-strong.",
        highlight=False,
    )


def print_facts(found: list[ModelFacts], console: Console) -> None:
    """Prints facts of models, a block each: paths are long, and hashes are there to be compared."""
    for facts in found:
        console.print(Text(facts.name, "bold"), soft_wrap=True)
        context = NOTHING if facts.info.context is None else str(facts.info.context)
        lines = {
            "kind": facts.kind,
            "architecture": facts.info.architecture,
            "parameters": f"{amount(facts.info.parameters)} ({facts.info.parameters})",
            "vocabulary": str(facts.info.vocabulary),
            "context": context,
            "tokenizer": facts.tokenizer,
        }
        for name, value in lines.items():
            console.print(Text(f"  {name:<13}{value}"), soft_wrap=True)
