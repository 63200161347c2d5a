"""Arguments and options that several commands share: their names, bounds and help, in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ensemw2s.errors import ConfigError
from ensemw2s.storage import remote


def _option(name: str, text: str, panel: str | None = None, **rest: Any) -> Any:
    return typer.Option(name, help=text, rich_help_panel=panel, show_default=rest.pop("show_default", False), **rest)


def _place(text: str) -> Path:
    """A path or a URI, as a path."""
    try:
        return remote.local(text)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None


def folder(name: str, text: str) -> Any:
    """A folder, here or in object storage."""
    return _option(name, text, metavar="DIR", parser=_place)


def file(name: str, text: str) -> Any:
    """A file, here or in object storage."""
    return _option(name, text, metavar="PATH", parser=_place)


RunFolder = Annotated[
    Path,
    typer.Argument(metavar="RUN_DIR", show_default=False, help="Folder of a finished run.", parser=_place),
]
ConfigFile = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG", show_default=False, help="YAML file; docs/config.md has every key.", parser=_place
    ),
]
ConfigOption = Annotated[
    Path, _option("--config", "YAML file; docs/config.md has every key.", metavar="FILE", parser=_place)
]
Fresh = Annotated[
    bool, _option("--fresh", "Forget what was made with another config, and what a stopped search found.")
]
Overrides = Annotated[
    list[str] | None,
    _option("--set", "Replace a value of the config, as in boosting.rounds=3; repeatable.", metavar="KEY=VALUE"),
]
ClusterFile = Annotated[
    Path | None, _option("--cluster", "File of `ray up`: what the run would need and cost there.", metavar="FILE")
]
PricesFile = Annotated[
    Path | None,
    _option("--prices", "Table of instance types; none: prices.yaml beside the file of --cluster.", metavar="FILE"),
]
MeasuredRun = Annotated[
    Path | None, _option("--measured", "Finished run whose speeds are taken in place of a model's.", metavar="RUN_DIR")
]
PromptTokens = Annotated[
    int | None, _option("--prompt-tokens", "Mean tokens of a prompt; none: of the first rows of the data.", min=1)
]
AnswerTokens = Annotated[
    int | None, _option("--answer-tokens", "Mean tokens of an answer; none: of the first rows of the data.", min=1)
]
Debug = Annotated[bool, _option("--debug", "Show traces, and the logs of Ray and of its workers.")]

Inputs = Annotated[
    list[str] | None,
    _option("--input", "Parquet, jsonl or csv: a file, a folder or a URI; repeatable.", "Input", metavar="PATH"),
]
Dataset = Annotated[
    str | None,
    _option("--dataset", "In place of files: a data set's hub id, or a folder of save_to_disk.", "Input"),
]
DatasetSplit = Annotated[str, _option("--split", "Split of the data set.", "Input", show_default=True)]
PromptColumn = Annotated[
    str, _option("--prompt-column", "Column of the prompt, or a Jinja template.", "Input", show_default=True)
]
IdColumn = Annotated[str | None, _option("--id-column", "Column of a unique id; none: a hash of the prompt.", "Input")]
AnswerColumn = Annotated[
    str, _option("--answer-column", "Column of the true answer, or a Jinja template.", "Input", show_default=True)
]
ChoicesColumn = Annotated[
    str | None, _option("--choices-column", "Column with the options of multiple-choice questions.", "Input")
]

PromptTemplate = Annotated[
    str | None, _option("--prompt-template", "Text around the prompt, which {prompt} stands for.", "Decoding")
]
ChatTemplate = Annotated[
    bool | None,
    _option("--chat-template/--no-chat-template", "Render prompts with the tokenizer's chat template.", "Decoding"),
]
MaxNewTokens = Annotated[
    int | None, _option("--max-new-tokens", "Longest answer, in tokens, the end included.", "Decoding", min=1)
]
BatchSize = Annotated[int | None, _option("--batch-size", "Prompts decoded at a time by an actor.", "Decoding", min=1)]
ChunkSize = Annotated[int | None, _option("--chunk-size", "Prompts an output file.", "Decoding", min=1)]
SoftTopK = Annotated[
    int | None, _option("--soft-top-k", "Keep this many of each token's distribution.", "Decoding", min=0)
]
Samples = Annotated[
    int | None, _option("--samples", "Answers drawn for a label; the most frequent one becomes it.", "Decoding", min=1)
]
Temperature = Annotated[
    float | None, _option("--temperature", "Of the drawn answers; 0: the likeliest token.", "Decoding", min=0)
]
TopP = Annotated[float | None, _option("--top-p", "Draw from tokens of this probability together.", "Decoding")]
Seed = Annotated[int | None, _option("--seed", "Of the drawn answers.", "Decoding", min=0)]

MaxRejected = Annotated[
    int | None,
    _option("--max-rejected", "Stop when more rows than this cannot be labelled; none: never.", "Output", min=0),
]
MinAgreement = Annotated[
    float | None, _option("--min-agreement", "Keep labels of at least this agreement.", "Output", min=0, max=1)
]
MinConsistency = Annotated[
    float | None,
    _option("--min-consistency", "Keep labels that at least this share of the samples gave.", "Output", min=0, max=1),
]
KeepFraction = Annotated[
    float | None, _option("--keep-fraction", "Of these, keep this share by agreement.", "Output", min=0.0001, max=1)
]

Actors = Annotated[int | None, _option("--actors", "Most actors at a time; none: as many as fit.", "Resources", min=1)]
ActorCpus = Annotated[float | None, _option("--cpus-per-actor", "CPUs of an actor.", "Resources", min=0.01)]
ActorGpus = Annotated[float | None, _option("--gpus-per-actor", "GPUs of an actor.", "Resources", min=0)]
Address = Annotated[
    str | None,
    _option("--address", "Ray cluster to join, or auto; none: RAY_ADDRESS, else one is started here.", "Resources"),
]
Cpus = Annotated[int | None, _option("--cpus", "CPUs of a Ray started here; none: all.", "Resources", min=1)]
