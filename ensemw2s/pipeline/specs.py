"""From the graph of a run to training specs: what each base, expert and student is trained on, and where it goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ensemw2s import env
from ensemw2s.boosting.masks import RoundWeights
from ensemw2s.config import Recipe
from ensemw2s.pipeline.graph import Base, Expert, Graph, Student
from ensemw2s.storage.store import Stage
from ensemw2s.training.records import TrainRecord
from ensemw2s.training.spec import Objective, Start, Tracking, TrainSpec

TRAIN = "train.parquet"
"""Table of tokens that a model learns from, in the folder of its stage."""


def base_spec(graph: Graph, base: Base) -> TrainSpec:
    """Pre-training of a tiny base on the corpus of its role."""
    assert graph.corpus is not None
    assert base.pretraining_seed is not None
    recipe: Recipe = getattr(graph.config.models.pretraining, base.role)
    corpus = graph.corpus.stage.path
    start = Start(path=_absolute(corpus / f"tokenizer{base.suffix}"), tiny=base.tiny)
    return _spec(
        graph, base.stage, start, corpus / f"{base.role}{base.suffix}.parquet", recipe, seed=base.pretraining_seed
    )


def expert_spec(graph: Graph, expert: Expert, *, weights: RoundWeights | None = None) -> TrainSpec:
    """Fine-tuning of a weak base on the easy labelled examples.

    Args:
        graph: The run.
        expert: What to train.
        weights: Token weights of a boosted expert.
    """
    if expert.best_of:
        best = best_of(expert.best_of)
        epochs = {"epochs": expert.recipe.epochs}
        expert = replace(expert, base=best.base, recipe=best.recipe.model_copy(update=epochs))
    if expert.bootstrap_examples:
        weights = RoundWeights(unit="example", weighting="bootstrap", seed=expert.seed)
    base = expert.base
    start = Start(path=base.location, revision=base.revision, lora=base.lora)
    if expert.warm_from is not None:
        start = Start(path=_absolute(expert.warm_from.path), lora=base.lora)
    spec = _spec(graph, expert.stage, start, graph.easy("easy_train", base), expert.recipe, seed=expert.seed)
    if expert.kept is not None:
        spec = spec.model_copy(update={"tokens": [*spec.tokens, _absolute(expert.kept.path / TRAIN)]})
    validation = _absolute(graph.easy("easy_validation", base)) if expert.keep == "best" else None
    return spec.model_copy(update={"weights": weights, "validation": validation, "keep": expert.keep})


def best_of(experts: Sequence[Expert]) -> Expert:
    """The expert whose kept epoch answers easy validation best, of equal ones the first; all are trained."""
    if len(experts) == 1:
        return experts[0]

    def right(expert: Expert) -> float:
        record = TrainRecord.read(expert.stage.path)
        return record.validation_exact_match[record.kept_epoch - 1]

    return max(experts, key=right)


def student_spec(graph: Graph, student: Student) -> TrainSpec:
    """Training of the strong base on a student's token table."""
    config, strong = student.recipe(graph.config), graph.strong
    objective = Objective(
        kind=config.objective,
        confidence_weight=config.confidence_weight,
        confidence_warmup=config.confidence_warmup,
    )
    recipe = Recipe(**{key: getattr(config, key) for key in Recipe.model_fields})
    start = Start(path=strong.location, revision=strong.revision, lora=strong.lora)
    spec = _spec(graph, student.stage, start, student.data.path / "train.parquet", recipe, seed=student.seed)
    return spec.model_copy(update={"objective": objective})


def _spec(graph: Graph, stage: Stage, start: Start, tokens: Path, recipe: Recipe, *, seed: int) -> TrainSpec:
    training = graph.config.training
    return TrainSpec(
        name=stage.name,
        output=_absolute(stage.path),
        fingerprint=stage.description,
        start=start,
        tokens=[_absolute(tokens)],
        recipe=recipe,
        seed=seed,
        zero_stage=training.zero_stage,
        offload=training.offload,
        precision=training.precision,
        gradient_checkpointing=training.gradient_checkpointing,
        threads=max(1, int(training.cpus_per_worker)),
        checkpoint_seconds=training.checkpoint_seconds,
        tracking=tracking_of(graph, stage.name),
    )


def tracking_of(graph: Graph, name: str) -> Tracking | None:
    """Where the curves of a stage go; None where `tracking.kind` is none."""
    wanted = graph.config.tracking
    if wanted.kind == "none":
        return None
    place = _absolute(graph.root / "tensorboard" / name)
    if wanted.kind == "mlflow":
        place = wanted.uri or env.MLFLOW_URI.get() or _absolute(graph.root / "mlflow")
    elif wanted.kind == "wandb":
        place = _absolute(graph.root / "wandb")
    return Tracking(kind=wanted.kind, place=place, experiment=graph.config.name, name=name, every=wanted.every)


def _absolute(path: Path) -> str:
    return str(path.resolve())
