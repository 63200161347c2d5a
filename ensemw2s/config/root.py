"""The one tree of settings: YAML in, a validated `Config` out, every mistake reported at once with its dotted key.

Everything a run depends on is a field of the tree with its unit, its bounds and its meaning; nothing is read from
anywhere else. Each section has a module of its own; here they are put together, with the rules that concern several.
The fingerprints of the stages (see `storage.store`) are computed from these fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, model_validator

from ensemw2s.config import recipes
from ensemw2s.config.boosting import BoostingConfig, EnsembleConfig
from ensemw2s.config.cluster import ClusterConfig
from ensemw2s.config.consensus import ConsensusConfig
from ensemw2s.config.data import DataConfig
from ensemw2s.config.evaluation import EvaluationConfig
from ensemw2s.config.labeling import LabelingConfig
from ensemw2s.config.messages import explain
from ensemw2s.config.models import ModelsConfig
from ensemw2s.config.search import SearchConfig
from ensemw2s.config.section import NAME, Section, raise_all
from ensemw2s.config.student import StudentConfig
from ensemw2s.config.systems import ALL_SYSTEMS, GENERATIONS, STUDENT_EASY_ONLY, TABLE
from ensemw2s.config.training import ExpertRecipe, TrackingConfig, TrainingConfig
from ensemw2s.config.tree import apply_override, dump_tree, read_tree
from ensemw2s.errors import ConfigError


class Config(Section):
    """A whole run."""

    name: str = Field(pattern=NAME, description="Name of the run; its folder's name.")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        0, description="Seed of the run; all other seeds are derived from it."
    )
    storage: str = Field(
        "runs",
        description="Folder with the folders of runs and the cache of pre-trained models; or a URI: s3://, gs:// or "
        "az://BUCKET/KEY, with credentials and endpoint in the environment.",
    )
    data: DataConfig
    models: ModelsConfig
    training: TrainingConfig = Field(TrainingConfig(), description="Workers, ZeRO, precision and checkpoints.")
    expert: ExpertRecipe = Field(ExpertRecipe(), description="Training of a weak expert.")
    boosting: BoostingConfig = Field(BoostingConfig(), description="The boosting rounds.")
    consensus: ConsensusConfig = Field(ConsensusConfig(), description="What follows the rounds, on hard prompts.")
    ensemble: EnsembleConfig = Field(EnsembleConfig(), description="How experts vote.")
    labeling: LabelingConfig = Field(LabelingConfig(), description="Decoding and scoring.")
    student: StudentConfig = Field(StudentConfig(), description="Training of the strong student.")
    evaluation: EvaluationConfig = Field(EvaluationConfig(), description="Systems that are compared, and statistics.")
    cluster: ClusterConfig = Field(ClusterConfig(), description="Which Ray.")
    tracking: TrackingConfig = Field(TrackingConfig(), description="Training curves.")
    search: SearchConfig | None = Field(
        None, description="What `ensemw2s tune` searches. Other commands do not read it."
    )

    @model_validator(mode="after")
    def _sections_fit(self) -> Config:
        bases = dict(zip(self.models.weak_names, self.models.weak, strict=True))
        wrong = []
        for i, member in enumerate(self.boosting.members):
            if member.model is not None and member.model not in bases:
                wrong.append(f"boosting.members.{i}.model is {member.model}, available: {', '.join(bases)}")
                continue
            starts = [member.model] if member.model is not None else list(bases)
            if member.lora_rank is not None and not any(bases[name].lora for name in starts):
                wrong.append(
                    f"boosting.members.{i}.lora_rank is {member.lora_rank}, but {', '.join(starts)} has no lora"
                )
        if self.student.objective == "soft" and self.labeling.soft_top_k == 0:
            wrong.append("student.objective soft needs labeling.soft_top_k of at least 1")
        if self.ensemble.fitted and self.data.sizes.easy_validation < 2:
            wrong.append(
                "ensemble.weights stacked and ensemble.calibration temperature are fitted on half of easy validation: "
                "data.sizes.easy_validation must be at least 2"
            )
        if self.student.min_consistency and self.labeling.samples == 1:
            wrong.append("student.min_consistency needs labeling.samples of at least 2")
        systems, generations = self.evaluation.systems, self.student.generations
        named = "systems" in self.evaluation.model_fields_set
        if GENERATIONS in systems and generations == 1:
            wrong.append(
                f"evaluation.systems has {GENERATIONS}, but student.generations is 1: set it to 2 or more, or leave "
                f"{GENERATIONS} out"
            )
        if named and GENERATIONS not in systems and generations > 1:
            wrong.append(
                f"student.generations is {generations}, but evaluation.systems does not have {GENERATIONS}: add it, or "
                "set student.generations to 1"
            )
        raise_all(wrong)
        joining = {GENERATIONS} if generations > 1 and not named else set()
        if self.student.asks_itself and any(TABLE[name].learns_from == "pseudo" for name in (*systems, *joining)):
            joining.add(STUDENT_EASY_ONLY)
        if joining <= set(systems):
            return self
        systems = [name for name in ALL_SYSTEMS if name in (*systems, *joining)]
        evaluation = self.evaluation.model_copy(update={"systems": systems})
        if not named:
            evaluation.model_fields_set.discard("systems")
        return self.model_copy(update={"evaluation": evaluation})


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Reads a YAML file, applies `a.b=value` overrides and validates the whole.

    Args:
        path: The YAML file, or the name of a recipe (`recipes.find`).
        overrides: `dotted.key=value` strings; values are YAML, list items are reached by their index.

    Raises:
        ConfigError: With every mistake of the file, each with its dotted key.
    """
    tree = read_tree(recipes.find(path))
    for override in overrides or []:
        apply_override(tree, override)
    return parse_config(tree, origin=str(path))


def parse_config(tree: Mapping[str, object], origin: str = "config") -> Config:
    """Validates a tree of plain values. Raises `ConfigError` with every mistake in it."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        lines = list(dict.fromkeys(line for item in error.errors() for line in explain(item, Config)))
        count = f"{len(lines)} mistakes" if len(lines) > 1 else "a mistake"
        raise ConfigError("\n".join([f"{origin} has {count}:", *(f"  {line}" for line in lines)])) from None


def dump_config(config: Config) -> str:
    """The config as YAML that `load_config` reads back."""
    return dump_tree(config.model_dump(mode="json"))
