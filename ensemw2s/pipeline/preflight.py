"""Finds what is wrong before Ray starts: rows, models, tokenizers, the run's folder, the resources of this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ensemw2s import env
from ensemw2s.cluster.connect import check_lasting, cluster_address
from ensemw2s.cluster.resources import local_resources, plan_resources
from ensemw2s.config import Config, ModelConfig, Recipe
from ensemw2s.data.answers import answer_key
from ensemw2s.data.sources import check_source
from ensemw2s.data.tokens import encode_text, render, turn_end
from ensemw2s.ensemble.bytewise.vocabulary import token_bytes
from ensemw2s.errors import ConfigError, ModelError, ResourceError
from ensemw2s.models import corpus
from ensemw2s.models.info import model_info
from ensemw2s.models.tokenizers import load_tokenizer, tokenizer_hash
from ensemw2s.pipeline.graph import run_directory
from ensemw2s.pipeline.scan import Scan, check_rows
from ensemw2s.pipeline.tokenizers import check_mixed, tokenizer_numbers
from ensemw2s.storage import remote

logger = logging.getLogger(__name__)

LARGE = 10_000_000
"""Parameters above which the defaults for tiny models are most likely wrong."""

LEAST = 2**20
"""Bytes that have to be free where a run begins: less is a full disk."""

RESIZE = "save a copy of one after model.resize_token_embeddings"
"""What to do about output layers of different sizes."""

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check(config: Config) -> Scan:
    """Checks a config against the world.

    Returns:
        How far the rows were read.

    Raises:
        ConfigError: If models do not fit together, or a package is missing.
        DataError: If a source or a row cannot be used.
        ModelError: If a model cannot be found or tokenizers differ.
        ResourceError: If the run's folder cannot be written, or if Ray would start here and this machine can never hold
            the work.
    """
    check_storage(config)
    tracker = config.tracking.kind
    if tracker in ("mlflow", "wandb") and find_spec(tracker) is None:
        raise ConfigError(
            f"tracking.kind {tracker} needs a package that is not installed: pip install -e '.[{tracker}]'"
        )
    answer_key(config.data.answer_match)
    check_source(config.data)
    check_models(config)
    if any(model.is_tiny for model in (*config.models.weak, config.models.strong)):
        corpus.check(config.data, config.models.pretraining.corpus)
    if cluster_address(config.cluster) is None:
        plan_resources(config, local_resources(config.cluster))
    return check_rows(config)  # the last, as it takes longest


def check_storage(config: Config) -> None:
    """Checks where the run's folder is to be.

    Raises:
        ConfigError: If it would not outlive a job, or the curves of MLflow would not get there.
        ResourceError: If it cannot be written, its disk is full, or object storage cannot be reached.
    """
    check_lasting(config.storage, "storage")
    elsewhere = config.tracking.uri or env.MLFLOW_URI.get()
    if config.tracking.kind == "mlflow" and "://" in config.storage and not elsewhere:
        raise ConfigError(f"tracking.kind mlflow with storage {config.storage} needs a server: set tracking.uri")
    folder = run_directory(config)
    remote.check(folder)
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ResourceError(
            f"storage {config.storage}: {existing} is not a writable folder; set storage to another one"
        )
    if free_bytes(existing) < LEAST:
        raise ResourceError(
            f"storage {config.storage}: there is no space left on the disk of {existing}; free some, or set storage "
            "to a folder on another disk"
        )


def check_models(config: Config) -> None:
    """Raises `ModelError` or `ConfigError` if a model is missing or models cannot work together."""
    weak, names = config.models.weak, config.models.weak_names
    for name, model in [*zip(names, weak, strict=True), ("strong", config.models.strong)]:
        if model.vocabulary is not None and model.base != "tiny-weak":
            raise ConfigError(
                f"models: {name}: vocabulary is {model.vocabulary}, but {model.base} is no tiny-weak that gets a "
                "tokenizer of its own; leave it out"
            )
    sizes: dict[str, list[int]] = {"expert": [], "student": []}
    own = [
        _tokenizer(name, model, sizes["expert"]) for name, model in zip(names, weak, strict=True) if not model.is_tiny
    ]
    strong = None if config.models.strong.is_tiny else _tokenizer("strong", config.models.strong, sizes["student"])
    _warn_of_defaults(config, sizes)
    numbers = tokenizer_numbers(config)
    if any(numbers):
        check_mixed(config)
        for tokenizer in own:
            _check_bytes(tokenizer, config)
    if config.data.add_bos and not config.data.chat_template:
        for tokenizer in (*own, *([strong] if strong is not None else [])):
            if tokenizer.bos_token_id is None:
                raise ConfigError(
                    f"data.add_bos is true, but the tokenizer of {tokenizer.name_or_path} has no BOS; leave it out"
                )
    if config.data.chat_template:
        _check_chat(config, [*own, *([strong] if strong is not None else [])])
    if config.student.objective == "soft":
        _check_soft(own[0] if own else None, strong)
    _check_vocabularies(config)


def _check_bytes(tokenizer: PreTrainedTokenizerBase, config: Config) -> None:
    """Checks that answers of a model can be read as bytes, the same ones in training and in a mixture."""
    by_id = token_bytes(tokenizer)
    for text in ("1", " 1 2"):
        [ids] = encode_text([text], tokenizer)
        tokens = [by_id[index] for index in ids]
        if None in tokens:  # it does not know these characters
            continue
        if (spelt := b"".join(token or b"" for token in tokens)) != text.encode():
            raise ModelError(
                f"the tokenizer of {tokenizer.name_or_path} writes {spelt.decode(errors='replace')!r} for {text!r}. "
                "Where weak models have different tokenizers, each has to keep an answer's spaces as they are"
            )
    if turn_end(tokenizer, config.data)[0]:
        raise ModelError(
            f"the chat template of {tokenizer.name_or_path} writes text before an answer's end token. Where weak "
            "models have different tokenizers, set data.chat_template to false"
        )


def _tokenizer(name: str, model: ModelConfig, sizes: list[int]) -> PreTrainedTokenizerBase:
    """Checks that a model is there, and gives its tokenizer."""
    try:
        sizes.append(model_info(model.base, model.revision).parameters)
        return load_tokenizer(model.base, model.revision)
    except ModelError as error:
        raise ModelError(f"models: {name}: {error}") from error


def _warn_of_defaults(config: Config, sizes: Mapping[str, list[int]]) -> None:
    """Says where a large model is trained with the learning rate that is meant for tiny ones."""
    default = Recipe.model_fields["learning_rate"].default
    for section, parameters in sizes.items():
        largest = max(parameters, default=0)
        if largest > LARGE and getattr(config, section).learning_rate == default:
            logger.warning(
                "%s.learning_rate is %g, the default for models of 30 thousand parameters, and the model has %.0f "
                "million: with LoRA 0.0001 to 0.0003 is usual, and a tenth of that when all weights are trained",
                section,
                default,
                largest / 1e6,
            )


def _check_chat(config: Config, tokenizers: list[PreTrainedTokenizerBase]) -> None:
    """A chat template is rendered by every model that reads prompts, the student among them."""
    if any(model.is_tiny for model in (*config.models.weak, config.models.strong)):
        raise ConfigError("data.chat_template is true, but embedded tiny models have no chat template; set it to false")
    for tokenizer in tokenizers:
        render("prompt", config.data, tokenizer)


def _check_soft(weak: PreTrainedTokenizerBase | None, strong: PreTrainedTokenizerBase | None) -> None:
    """Soft labels are distributions over the weak models' tokens, so the student must have the same tokens.

    Args:
        weak: Tokenizer of the weak models; None for the one that is trained for tiny models.
        strong: Tokenizer of the strong model; None as above.
    """
    both = [tokenizer_hash(tokenizer) if tokenizer is not None else None for tokenizer in (weak, strong)]
    if both[0] != both[1]:
        raise ConfigError(
            "student.objective soft needs weak and strong models with the same tokenizer, but that of models.strong "
            "differs: use logconf or xent"
        )


def _check_vocabularies(config: Config) -> None:
    """Models of one tokenizer may have output layers of different sizes: some families pad them.

    Raises:
        ModelError: Where votes, soft labels or drafts of one size do not fit another.
    """
    numbers = tokenizer_numbers(config)
    weak = zip(config.models.weak_names, config.models.weak, numbers, strict=True)
    sizes = [(name, model_info(m.base, m.revision).vocabulary, number) for name, m, number in weak if not m.is_tiny]
    if not sizes:
        return
    firsts = {number: (name, size) for name, size, number in reversed(sizes)}
    for name, other, number in sizes:
        first, size = firsts[number]
        if other != size:
            raise ModelError(
                f"models: the output layer of {name} has {other} tokens, that of {first} {size}. Experts vote on token "
                f"ids, so these must be equal: {RESIZE}"
            )
    first, size, _ = sizes[0]
    model, draft = config.models.strong, config.labeling.speculation
    if config.student.objective == "soft" and not model.is_tiny:
        strong = model_info(model.base, model.revision).vocabulary
        if strong < size:
            raise ModelError(
                f"models: the output layer of strong has {strong} tokens, that of {first} {size}, and soft labels are "
                f"distributions over these: use student.objective logconf or xent, or {RESIZE}"
            )
    if Path(draft).expanduser().is_dir() and (own := model_info(draft).vocabulary) != size:
        raise ModelError(
            f"labeling.speculation: the output layer of {draft} has {own} tokens, that of {first} {size}, and a draft "
            f"needs as many: take another draft, or {RESIZE}"
        )


def free_bytes(path: Path) -> int:
    """Bytes free on the disk of a folder or of its nearest parent that exists."""
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    stats = os.statvfs(existing)
    return stats.f_bavail * stats.f_frsize
