"""What every section of the config is, and types that several of them use."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
"""What a run, a study or a model may be called: a folder has this name."""


def raise_all(wrong: list[str]) -> None:
    """Makes one validation error of all rules that are broken, a line each (see `messages.explain`)."""
    if wrong:
        raise ValueError("\n".join(wrong))


class Section(BaseModel):
    """A part of the config: frozen, no unknown keys, numbers are finite, defaults are validated too."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
