"""From a config to the graph of its run: which stages there are, what each depends on, and where it lies.

Nothing is read or run except what identifies data and models. The settings of a stage are its fingerprint: a key that
changes here makes every run that exists do the stage again.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ensemw2s.config import GENERATIONS, BoostingConfig, Config, FilesSource, LabelFilter, ModelConfig, Recipe
from ensemw2s.data.examples import derive_seed
from ensemw2s.data.readers import make_reader
from ensemw2s.data.sources import sources_identity
from ensemw2s.pipeline.graph import (
    FIRST_ROUND,
    LABEL_MAKERS,
    Base,
    Expert,
    Generation,
    Graph,
    Round,
    Student,
    run_directory,
)
from ensemw2s.storage import remote
from ensemw2s.storage.store import Stage, file_hash


def build_graph(config: Config, shared: Path | None = None) -> Graph:
    """Lays out the stages of a config.

    Args:
        config: The config.
        shared: In place of the run's own folder: one in which runs of similar configs find each other's stages, each
            in a folder named by its fingerprint.

    Raises:
        DataError: If a data source cannot be identified (a file is missing).
    """
    return _Builder(config, shared).build()


def settings_of(section: Any, prefix: str, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """A config section as dotted key → plain value."""
    dumped = section.model_dump(mode="json")
    return {f"{prefix}.{key}": value for key, value in dumped.items() if key not in without}


class _Builder:
    def __init__(self, config: Config, shared: Path | None) -> None:
        self.config = config
        self.shared = shared is not None
        self.root = run_directory(config) if shared is None else shared
        self.cache = remote.local(config.storage) / "cache"
        self.seed = {"seed": config.seed}

    def build(self) -> Graph:
        config, systems = self.config, set(self.config.evaluation.systems)
        data = self._stage(
            "data",
            {**settings_of(config.data, "data"), **self.seed, "sources": sources_identity(config.data)},
        )
        corpus = self._corpus(data)
        weak = tuple(
            self._base(m, n, corpus) for m, n in zip(config.models.weak, config.models.weak_names, strict=True)
        )
        strong = self._base(config.models.strong, config.models.strong.name or "strong", corpus)
        tokens = self._stage("tokens", {}, (data, weak[0].stage), folder="tokens/easy")
        rounds = self._rounds(weak, tokens)
        single = self._single(weak, tokens) if systems & {"expert_single", "student_single"} else None
        matched = self._matched(weak, tokens) if "expert_compute_matched" in systems else None
        bagging = self._bagging(weak, tokens) if systems & {"bagging", "student_bagging"} else ()
        ensemble = self._ensemble(rounds)
        labels = self._labels(data, ensemble, single, bagging, systems)
        generations = self._generations(data, strong, labels["ensemw2s"]) if GENERATIONS in systems else ()
        students = self._students(data, strong, labels, generations)
        evaluation = self._stage(
            "evaluation",
            {
                **settings_of(config.evaluation, "evaluation"),
                "labeling.max_new_tokens": config.labeling.max_new_tokens,
                "labeling.precision": config.labeling.precision,
            },
            tuple(
                stage
                for stage in (
                    data,
                    ensemble,
                    *(base.stage for base in weak if "base_zero_shot" in systems),
                    *(e.stage for e in (single, matched, *bagging) if e is not None),
                    *labels.values(),
                    *(s.stage for s in students),
                )
            ),
        )
        bases = (strong, *weak)
        return Graph(
            config, self.root, data, corpus, weak, strong, tokens, rounds, bagging, single, matched, ensemble, labels,
            students, evaluation, bases, self.shared, generations,
        )  # fmt: skip

    def _stage(
        self, name: str, settings: dict[str, Any], inputs: tuple[Stage, ...] = (), folder: str | None = None
    ) -> Stage:
        """A stage in a folder of its name, or of its fingerprint where runs share it."""
        if self.shared:
            stage = Stage(name, Path(), settings, inputs)
            folder = f"{name.replace('/', '-')}-{stage.fingerprint[:16]}"
        return Stage(name, self.root / (folder or name), settings, inputs)

    def _corpus(self, data: Stage) -> Stage | None:
        models = self.config.models
        roles = sorted({model.base for model in (*models.weak, models.strong) if model.is_tiny})
        if not roles:
            return None
        settings = {
            **settings_of(models.pretraining, "models.pretraining", without=("weak", "strong")),
            "roles": roles,
            "files": make_reader(FilesSource(paths=paths)).identity()
            if (paths := models.pretraining.corpus.paths)
            else {},
            "seed": derive_seed(self.config.seed, "corpus"),
        }
        return self._cached(Stage("corpus", Path(), settings, (data,)))

    def _base(self, model: ModelConfig, name: str, corpus: Stage | None) -> Base:
        if not model.is_tiny:
            stage = Stage(f"models/{name}", Path(model.base), model_identity(model))
            place = str(remote.local(model.base)) if "://" in model.base else model.base
            return Base(name, place, model.revision, model.lora, None, stage)
        assert corpus is not None
        role = model.base.removeprefix("tiny-")
        recipe = getattr(self.config.models.pretraining, role)
        settings = {
            **settings_of(recipe, f"models.pretraining.{role}"),
            "base": model.base,
            "pretraining_seed": derive_seed(self.config.seed, "pretraining", role, model.pretraining_seed),
            **self._training(),
        }
        stage = self._cached(Stage(f"models/{name}", Path(), settings, (corpus,)))
        return Base(name, str(stage.path), None, model.lora, model.base, stage)

    def _cached(self, stage: Stage) -> Stage:
        """Puts a stage into the cache that runs share, in a folder named by its fingerprint."""
        folder = f"{stage.name.split('/')[0]}-{stage.fingerprint[:16]}"
        return Stage(stage.name, self.cache / folder, stage.settings, stage.inputs)

    def _training(self) -> dict[str, Any]:
        # workers, lanes and restarts change who computes, not what
        return settings_of(
            self.config.training,
            "training",
            without=(
                "workers",
                "cpus_per_worker",
                "gpus_per_worker",
                "node_resource",
                "lanes",
                "max_failures",
                "checkpoint_seconds",
                "gradient_checkpointing",
            ),
        )

    def _expert(
        self, name: str, base: Base, recipe: Recipe, seed: int, settings: dict[str, Any], inputs: tuple[Stage, ...]
    ) -> Expert:
        described = {
            **settings_of(recipe, "expert"),
            **self._training(),
            **settings,
            "lora": base.lora.model_dump(mode="json") if base.lora else None,
            "seed": seed,
        }
        stage = self._stage(name, described, inputs)
        return Expert(stage, base, recipe, seed)

    def _member(self, weak: tuple[Base, ...], index: int) -> tuple[Base, Recipe]:
        """Base and recipe of the expert with this number over rounds and width."""
        members, recipe = self.config.boosting.members, self.config.expert
        base = weak[index % len(weak)]
        if not members:
            return base, recipe
        member = members[index % len(members)]
        if member.model is not None:
            base = next(b for b in weak if b.name == member.model)
        if member.lora_rank is not None and base.lora is not None:
            lora = base.lora.model_copy(update={"rank": member.lora_rank})
            base = Base(base.name, base.path, base.revision, lora, base.tiny, base.stage)
        changes = {k: v for k in ("learning_rate", "epochs") if (v := getattr(member, k)) is not None}
        return base, recipe.model_copy(update=changes)

    def _rounds(self, weak: tuple[Base, ...], tokens: Stage) -> tuple[Round, ...]:
        boosting: BoostingConfig = self.config.boosting
        settings = settings_of(boosting, "boosting", without=("rounds", "members", "width"))
        if boosting.error_from == "ensemble":
            settings["ensemble.combine"] = self.config.ensemble.combine
        rounds: list[Round] = []
        for t in range(1, boosting.rounds + 1):
            before = rounds[-1] if rounds else None
            tries = tuple(
                tuple(self._round_expert(weak, tokens, t, k, again, settings, before) for k in range(boosting.width))
                for again in (False, True)
            )
            inputs = tuple(expert.stage for expert in tries[0])
            stage = self._stage(f"rounds/{t}", {**settings, "round": t}, inputs)
            rounds.append(Round(t, stage, *tries))
        return tuple(rounds)

    def _round_expert(
        self,
        weak: tuple[Base, ...],
        tokens: Stage,
        t: int,
        k: int,
        again: bool,
        settings: dict[str, Any],
        before: Round | None,
    ) -> Expert:
        base, recipe = self._member(weak, (t - 1) * self.config.boosting.width + k)
        name = f"rounds/{t}/experts/{k}" + ("-retry" if again else "")
        warm = before.experts[k].stage if before is not None and self.config.boosting.warm_start == "previous" else None
        inputs = (tokens, base.stage, *((before.stage,) if before is not None else ()))
        seed = derive_seed(self.config.seed, name)
        if before is None:  # all weights are equal, whatever is made of errors later
            settings = {f"boosting.{key}": settings[f"boosting.{key}"] for key in FIRST_ROUND}
        expert = self._expert(name, base, recipe, seed, settings, inputs)
        return Expert(expert.stage, base, recipe, seed, warm)

    def _single(self, weak: tuple[Base, ...], tokens: Stage) -> Expert:
        base, recipe = self._member(weak, 0)
        epochs = self.config.evaluation.single_max_epochs or 2 * recipe.epochs
        recipe = recipe.model_copy(update={"epochs": epochs})
        name = "baselines/expert_single"
        seed = derive_seed(self.config.seed, name)
        return self._expert(name, base, recipe, seed, {"keep": "best"}, (tokens, base.stage))

    def _matched(self, weak: tuple[Base, ...], tokens: Stage) -> Expert:
        base, recipe = self._member(weak, 0)
        members = range(self.config.boosting.rounds * self.config.boosting.width)
        budget = sum(self._member(weak, i)[1].epochs for i in members)
        recipe = recipe.model_copy(update={"epochs": budget})
        name = "baselines/expert_compute_matched"
        return self._expert(name, base, recipe, derive_seed(self.config.seed, name), {}, (tokens, base.stage))

    def _bagging(self, weak: tuple[Base, ...], tokens: Stage) -> tuple[Expert, ...]:
        experts = []
        for i in range(self.config.boosting.rounds * self.config.boosting.width):
            base, recipe = self._member(weak, i)
            name = f"baselines/bagging/{i}"
            seed = derive_seed(self.config.seed, name)
            experts.append(self._expert(name, base, recipe, seed, {"bootstrap": "examples"}, (tokens, base.stage)))
        return tuple(experts)

    def _ensemble(self, rounds: tuple[Round, ...]) -> Stage:
        """The rounds lead to the tokens of easy validation, on which votes may be fitted."""
        ensemble = self.config.ensemble
        settings: dict[str, object] = {f"ensemble.{key}": value for key, value in ensemble.deciding().items()}
        settings["boosting.rounds"] = self.config.boosting.rounds
        if ensemble.fitted:
            settings["labeling.precision"] = self.config.labeling.precision
        return self._stage("ensemble", settings, (rounds[-1].stage,))

    def _labels(
        self, data: Stage, ensemble: Stage, single: Expert | None, bagging: tuple[Expert, ...], systems: set[str]
    ) -> dict[str, Stage]:
        settings = self._labeling()
        labels = {"ensemw2s": self._stage("labels", settings, (data, ensemble))}
        others: dict[str, tuple[Stage, ...]] = {}
        if single is not None and "student_single" in systems:
            others["expert_single"] = (single.stage,)
        if bagging and "student_bagging" in systems:
            others["bagging"] = tuple(expert.stage for expert in bagging)
        for maker, inputs in others.items():
            name = f"baselines/labels/{maker}"
            combine = {"ensemble.combine": self.config.ensemble.combine} if maker == "bagging" else {}
            labels[maker] = self._stage(name, {**settings, **combine}, (data, *inputs))
        return labels

    def _labeling(self) -> dict[str, Any]:
        return {f"labeling.{key}": value for key, value in self.config.labeling.deciding().items()}

    def _generations(self, data: Stage, strong: Base, labels: Stage) -> tuple[Generation, ...]:
        """Those that label for another one; the first learns from the labels of the boosted weak experts."""
        made: list[Generation] = []
        maker = "ensemw2s"
        for number in range(1, self.config.student.generations):
            folder = f"generations/{number}"
            table = self._stage(f"tokens/{folder}", self._table_settings(), (data, strong.stage, labels))
            students = []
            for k in range(self.config.student.generation_width):
                name = f"{folder}/students/{k}"
                students.append(self._student(name, table, strong, derive_seed(self.config.seed, name), maker))
            combine = {"ensemble.combine": self.config.ensemble.combine}
            ensemble = self._stage(f"{folder}/ensemble", combine, tuple(student.stage for student in students))
            labels = self._stage(f"{folder}/labels", self._labeling(), (data, ensemble))
            made.append(Generation(number, tuple(students), ensemble, labels))
            maker = made[-1].name
        return tuple(made)

    def _students(
        self, data: Stage, strong: Base, labels: dict[str, Stage], generations: tuple[Generation, ...]
    ) -> tuple[Student, ...]:
        labels = labels | {generation.name: generation.labels for generation in generations}
        makers = LABEL_MAKERS | ({GENERATIONS: generations[-1].name} if generations else {})
        seed = derive_seed(self.config.seed, "student")  # the same for all: they differ in their data alone
        students = []
        for name in self.config.evaluation.systems:
            if not name.startswith("student_"):
                continue
            maker = makers.get(name)
            inputs = (data, strong.stage, *((labels[maker],) if maker is not None else ()))
            table = self._stage(f"tokens/students/{name}", {**self._table_settings(), "student": name}, inputs)
            student = self._student(f"students/{name}", table, strong, seed, maker)
            students.append(replace(student, name=name))
        return tuple(students)

    def _table_settings(self) -> dict[str, Any]:
        keys = ("mix_easy", "objective", *LabelFilter.model_fields)
        return {f"student.{key}": getattr(self.config.student, key) for key in keys}

    def _student(self, name: str, table: Stage, strong: Base, seed: int, maker: str | None) -> Student:
        recipe = settings_of(self.config.student, "student", without=("generations", "generation_width"))
        lora = strong.lora.model_dump(mode="json") if strong.lora else None
        settings = {**recipe, **self._training(), "lora": lora, "seed": seed}
        return Student(name, table, self._stage(name, settings, (table, strong.stage)), seed, maker)


def model_identity(model: ModelConfig) -> dict[str, Any]:
    """What identifies a base model that is not ours: hub id and revision, or a folder with its files' hashes."""
    folder = remote.pull(remote.local(model.base))
    if not folder.is_dir():
        return {"base": model.base, "revision": model.revision}
    files = sorted(p for p in folder.iterdir() if p.suffix in (".json", ".safetensors", ".model", ".txt", ".jinja"))
    return {"base": model.base, "files": {p.name: file_hash(p) for p in files}}
