"""The exceptions that a user can meet. One tree, so that the command line can tell a wrong config from failed work.

Every message names the thing, its value, what was expected, and what to do.
"""

from __future__ import annotations


class EnsemW2SError(Exception):
    """Base of all errors with a message meant for the user. Exit code 1 on the command line."""


class ConfigError(EnsemW2SError):
    """The config (or the command line) is wrong; nothing was started. Exit code 2."""


class DataError(EnsemW2SError):
    """Input data cannot be used: a missing column, an empty split, splits that overlap."""


class ExampleError(DataError):
    """An example cannot be used. Who knows the sources can say which row it comes from.

    Attributes:
        example: Its id.
    """

    def __init__(self, message: str, example: str = "") -> None:  # unpickled by its message alone
        super().__init__(message)
        self.example = example


class ModelError(EnsemW2SError):
    """A model or tokenizer cannot be loaded, or does not fit the others."""


class ArtifactError(EnsemW2SError):
    """Something stored is damaged, or was made by another config."""


class ResourceError(EnsemW2SError):
    """The cluster or the disk can never give what the work asks for."""


class TrainingError(EnsemW2SError):
    """Training failed: a worker died too often, or the loss is not a number any more."""


class BoostingError(EnsemW2SError):
    """Boosting cannot go on: an expert is no better than its reference and the config says to stop."""


class SearchError(EnsemW2SError):
    """A search found nothing."""


class StudyError(EnsemW2SError):
    """Some cells of a study failed; the others are finished and reported."""
