"""What every run begins with, as stages of its graph: data, text and bases, tokens of the easy splits.

Apart from `build` because nothing of boosting changes these stages; the same rules for settings hold.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path

from ensemw2s.config import Config, FilesSource, ModelConfig
from ensemw2s.config.systems import TABLE
from ensemw2s.data.examples import derive_seed
from ensemw2s.data.readers import make_reader
from ensemw2s.data.sources import sources_identity
from ensemw2s.pipeline.graph import Base, BaseText, run_directory
from ensemw2s.pipeline.identity import WHO_COMPUTES, as_made, base_identity, data_settings, settings_of
from ensemw2s.pipeline.tokenizers import tokenizer_numbers
from ensemw2s.storage import remote
from ensemw2s.storage.store import Stage


def cache_of(config: Config) -> Path:
    """Folder of a storage that all its runs share."""
    return remote.local(config.storage) / "cache"


class Foundations:
    """Stages that others depend on are properties, so that each is made once."""

    def __init__(self, config: Config, shared: Path | None) -> None:
        self.config = config
        self.shared = shared is not None
        self.root = run_directory(config) if shared is None else shared
        self.cache = cache_of(config)
        systems = config.evaluation.systems
        self.needed = {*systems, *(maker for name in systems if (maker := TABLE[name].labels_by) is not None)}
        """The systems, and those whose labels their students learn from."""

    @cached_property
    def data(self) -> Stage:
        drawn = {"seed": self.config.seed, "sources": sources_identity(self.config.data)}
        stage = self._stage("data", data_settings(self.config) | drawn)
        return stage if self.shared else as_made(stage)

    @cached_property
    def corpus(self) -> BaseText | None:
        models = self.config.models
        roles = sorted({model.base for model in (*models.weak, models.strong) if model.is_tiny})
        if not roles:
            return None
        paths, seed = models.pretraining.corpus.paths, derive_seed(self.config.seed, "corpus")
        settings = {
            **settings_of(models.pretraining, "models.pretraining", without=("weak", "strong")),
            "roles": roles,
            "files": make_reader(FilesSource(paths=paths)).identity() if paths else {},
            "seed": seed,
        }
        if own := sorted({model.vocabulary for model in models.weak if model.is_tiny and model.vocabulary}):
            settings["vocabularies"] = own
        return BaseText(self._cached("corpus", settings, (self.data,)), seed)

    @cached_property
    def weak(self) -> tuple[Base, ...]:
        models = self.config.models
        bases = [self._base(model, name) for model, name in zip(models.weak, models.weak_names, strict=True)]
        numbers = tokenizer_numbers(self.config)
        return tuple(replace(base, tokenizer=number) for base, number in zip(bases, numbers, strict=True))

    @cached_property
    def readers(self) -> tuple[Base, ...]:
        """The first weak base of each tokenizer."""
        return tuple({base.tokenizer: base for base in reversed(self.weak)}[n] for n in self._tokenizers)

    @property
    def _tokenizers(self) -> range:
        return range(1 + max(base.tokenizer for base in self.weak))

    @cached_property
    def strong(self) -> Base:
        model = self.config.models.strong
        return self._base(model, model.name or "strong")

    @cached_property
    def tokens(self) -> Stage:
        settings: dict[str, object] = {"segments": True} if len(self.readers) > 1 else {}
        inputs = (self.data, *(base.stage for base in self.readers))
        return self._stage("tokens", settings, inputs, folder="tokens/easy")

    def _stage(
        self, name: str, settings: dict[str, object], inputs: tuple[Stage, ...] = (), folder: str | None = None
    ) -> Stage:
        """A stage in a folder of its name, or of its fingerprint where runs share it."""
        if self.shared:
            stage = Stage(name, Path(), settings, inputs)
            folder = f"{name.replace('/', '-')}-{stage.fingerprint[:16]}"
        return Stage(name, self.root / (folder or name), settings, inputs)

    def _cached(self, name: str, settings: dict[str, object], inputs: tuple[Stage, ...]) -> Stage:
        """A stage in the cache that all runs share, in a folder named by its fingerprint."""
        stage = Stage(name, Path(), settings, inputs)
        return replace(stage, path=self.cache / f"{name.split('/')[0]}-{stage.fingerprint[:16]}")

    def _base(self, model: ModelConfig, name: str) -> Base:
        if not model.is_tiny:
            return Base(
                name=name,
                path=str(remote.local(model.base)) if "://" in model.base else model.base,
                revision=model.revision,
                lora=model.lora,
                tiny=None,
                pretraining_seed=None,
                stage=Stage(f"models/{name}", Path(model.base), base_identity(model, self.config.data)),
            )
        assert self.corpus is not None
        role = model.base.removeprefix("tiny-")
        seed = derive_seed(self.config.seed, "pretraining", role, model.pretraining_seed)
        settings = {
            **settings_of(getattr(self.config.models.pretraining, role), f"models.pretraining.{role}"),
            "base": model.base,
            "pretraining_seed": seed,
            **self._training(),
            **({"vocabulary": model.vocabulary} if model.vocabulary is not None else {}),
        }
        stage = self._cached(f"models/{name}", settings, (self.corpus.stage,))
        return Base(
            name=name,
            path=str(stage.path),
            revision=None,
            lora=model.lora,
            tiny=model.base,
            pretraining_seed=seed,
            stage=stage,
            vocabulary=model.vocabulary,
        )

    def _training(self) -> dict[str, object]:
        return settings_of(self.config.training, "training", without=WHO_COMPUTES)
