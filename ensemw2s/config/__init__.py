"""The config of a run: one tree of pydantic models, read from YAML, checked whole before anything starts."""

from ensemw2s.config.answers import AnswerMatch, FunctionMatch, RegexMatch
from ensemw2s.config.boosting import BoostingConfig, EnsembleConfig
from ensemw2s.config.cluster import ClusterConfig, NodeKind
from ensemw2s.config.consensus import ConsensusConfig
from ensemw2s.config.data import (
    Columns,
    DataConfig,
    FilesSource,
    HuggingFaceSource,
    MultipleChoice,
    ReasoningGymSource,
    SplitConfig,
    SplitSizes,
)
from ensemw2s.config.labeling import LabelFilter, LabelingConfig
from ensemw2s.config.models import TINY_FAMILY, Corpus, Lora, ModelConfig, Pretraining
from ensemw2s.config.root import Config, dump_config, load_config, parse_config
from ensemw2s.config.section import Section
from ensemw2s.config.student import StudentConfig
from ensemw2s.config.systems import ALL_SYSTEMS, GENERATIONS, SYSTEMS
from ensemw2s.config.training import Recipe, TrainingConfig, Workers

__all__ = [
    "ALL_SYSTEMS",
    "GENERATIONS",
    "SYSTEMS",
    "TINY_FAMILY",
    "AnswerMatch",
    "BoostingConfig",
    "ClusterConfig",
    "Columns",
    "Config",
    "ConsensusConfig",
    "Corpus",
    "DataConfig",
    "EnsembleConfig",
    "FilesSource",
    "FunctionMatch",
    "HuggingFaceSource",
    "LabelFilter",
    "LabelingConfig",
    "Lora",
    "ModelConfig",
    "MultipleChoice",
    "NodeKind",
    "Pretraining",
    "ReasoningGymSource",
    "Recipe",
    "RegexMatch",
    "Section",
    "SplitConfig",
    "SplitSizes",
    "StudentConfig",
    "TrainingConfig",
    "Workers",
    "dump_config",
    "load_config",
    "parse_config",
]
