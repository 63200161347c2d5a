"""What fingerprints are made of: sections of the config as settings, and the identity of a base that exists already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from pydantic import BaseModel

from ensemw2s.config import Config, DataConfig, FilesSource, ModelConfig, SplitConfig
from ensemw2s.data.tokens import begin_ids, turn_end
from ensemw2s.errors import ModelError
from ensemw2s.models.hub import generation_ends, is_here
from ensemw2s.models.tokenizers import load_tokenizer
from ensemw2s.storage import remote
from ensemw2s.storage.store import MARKER, Description, Stage, file_hash

KINDS = (".json", ".safetensors", ".model", ".txt", ".jinja")
"""Files that decide what a model computes."""

FIRST_ROUND = ("unit", "window", "weighting", "bootstrap")
"""Settings of boosting that an expert of the first round depends on."""

LATER: Mapping[str, tuple[object, ...]] = {
    "add_bos": (None, True),  # True is what older runs did
    "answer_match": ("exact",),
    "system_prompt": (None,),
    "shots": (0,),
    "too_long": ("error",),
    "unreadable": ("error",),
}
"""Settings of data that older runs do not have, and the values with which they are in no fingerprint."""

LIMITS = ("max_prompt_tokens", "max_answer_tokens")
"""Settings of data that shape no training unless longer rows are dropped."""

WHO_COMPUTES = (
    "workers", "cpus_per_worker", "gpus_per_worker", "node_resource", "lanes", "max_failures", "checkpoint_seconds",
    "gradient_checkpointing",
)  # fmt: skip
"""Settings of training that change who computes and when, but not what comes out."""


def settings_of(section: BaseModel, prefix: str, *, without: tuple[str, ...] = ()) -> dict[str, object]:
    """A config section as dotted key → plain value."""
    return {f"{prefix}.{key}": value for key, value in section.model_dump(mode="json").items() if key not in without}


def data_tree(data: DataConfig) -> dict[str, object]:
    """The section `data` as plain values, without what older runs do not have and what changes nothing."""
    tree: dict[str, object] = data.model_dump(mode="json")
    for key, values in LATER.items():
        if getattr(data, key) in values:
            del tree[key]
    for source in (tree["source"], tree["hard_source"]):
        if isinstance(source, dict) and source["where"] is None:
            del source["where"]
    return tree


def data_settings(config: Config) -> dict[str, object]:
    """The section `data` for the fingerprint of the splits.

    Limits count where longer rows are dropped, and with them the models whose tokenizers say what is longer; elsewhere
    they are written as their defaults, whatever they are.
    """
    data = config.data
    tree = data_tree(data)
    tree.pop("answer_match", None)
    found = {f"data.{key}": value for key, value in tree.items()}
    if (data.too_long, data.unreadable) == ("error", "error"):
        return found | {f"data.{key}": DataConfig.model_fields[key].default for key in LIMITS}
    bases = [model.model_dump(mode="json", include={"base", "revision"}) for model in all_models(config)]
    return found | {"models": bases}


def as_made(stage: Stage) -> Stage:
    """The stage of the splits, with the limits that are recorded of it if nothing else differs.

    Older runs recorded limits that shaped nothing.
    """
    found = Description.read(stage.path / MARKER)
    if found is None:
        return stage
    recorded = {key: found.settings[key] for key in (f"data.{name}" for name in LIMITS) if key in found.settings}
    settings = stage.settings | recorded
    drops = {"data.too_long", "data.unreadable"} & settings.keys()
    return replace(stage, settings=settings) if settings == found.settings and not drops else stage


def all_models(config: Config) -> list[ModelConfig]:
    """The weak bases and the strong one."""
    return [*config.models.weak, config.models.strong]


def matching(data: DataConfig) -> dict[str, object]:
    """How answers are compared, where that is not exact."""
    if data.answer_match == "exact":
        return {}
    return {"data.answer_match": data.model_dump(mode="json")["answer_match"]}


def model_identity(model: ModelConfig) -> dict[str, object]:
    """Hub id and revision, or a folder with the hashes of its files."""
    folder = remote.pull(remote.local(model.base))
    if not folder.is_dir():
        return {"base": model.base, "revision": model.revision}
    files = sorted(p for p in folder.iterdir() if p.suffix in KINDS)
    return {"base": model.base, "files": {p.name: _hash(p, p.stat().st_size, p.stat().st_mtime_ns) for p in files}}


def base_identity(model: ModelConfig, data: DataConfig) -> dict[str, object]:
    """What decides what a base computes, and how it reads prompts and ends answers where that is not the usual way."""
    return model_identity(model) | reading_identity(model, data)


def reading_identity(model: ModelConfig, data: DataConfig) -> dict[str, object]:
    """How prompts of a base begin and its answers end, where that is not with BOS, if it has one, and with EOS.

    A base that is not here has none: the check before a run reads its tokenizer, or says why it cannot.
    """
    if not is_here(model.base, model.revision):
        return {}
    rules = (data.add_bos, data.chat_template)
    return dict(_reading(model.base, model.revision, *rules))


@cache
def _reading(base: str, revision: str | None, add_bos: bool | None, chat: bool) -> Mapping[str, object]:
    unread = FilesSource(paths=["-"])
    data = DataConfig(source=unread, split=SplitConfig(mode="random"), add_bos=add_bos, chat_template=chat)
    try:
        tokenizer = load_tokenizer(base, revision)
        begin, (text, end) = begin_ids(tokenizer, data), turn_end(tokenizer, data)
        ends = generation_ends(base, revision)
    except (ModelError, OSError, ValueError):
        return {}
    bos, eos = tokenizer.bos_token_id, int(tokenizer.eos_token_id)
    found: dict[str, object] = {}
    if not chat and begin != ([] if bos is None else [bos]):
        found["begin"] = begin
    if (text, end) != ("", eos):
        found["turn_end"] = [text, end]
    if more := sorted(set(ends) - {eos, end}):
        found["ends"] = more
    return found


@cache
def _hash(file: Path, size: int, changed_ns: int) -> str:
    """Hash of a file. Cells of a study share their bases, so a file that did not change is read once per process."""
    return file_hash(file)
