"""The section `search` of the config: what `ensemw2s tune` varies, how it chooses, and by what it judges."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ensemw2s.config.section import PositiveInt, Section, raise_all

Bounds = tuple[float, float]

KINDS = ("log_uniform", "uniform", "integer", "choice")


class Parameter(Section):
    """The values that a config key may take: one of `log_uniform`, `uniform`, `integer` and `choice`."""

    log_uniform: Bounds | None = Field(
        None, description="Smallest and largest value; the logarithm is drawn uniformly."
    )
    uniform: Bounds | None = Field(None, description="Smallest and largest value.")
    integer: tuple[int, int] | None = Field(None, description="Smallest and largest integer, both included.")
    choice: list[Any] | None = Field(None, description="The values.")
    when: dict[str, object] = Field(
        default_factory=dict,
        description="Search this key only if other keys of the space, which have a choice, have one of these values. "
        "Otherwise the config's own value is used.",
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Parameter:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"needs one of {', '.join(KINDS)}" + (f", not {' and '.join(given)}" if given else ""))
        wrong = []
        kind, values = given[0], getattr(self, given[0])
        if kind == "choice":
            if not values:
                wrong.append("choice is empty")
            if len({repr(value) for value in values}) < len(values):
                wrong.append("choice has a value twice")
        elif values[0] > values[1]:
            wrong.append(f"{kind} is empty: {values[0]:g} is more than {values[1]:g}")
        elif kind == "log_uniform" and values[0] <= 0:
            wrong.append(f"log_uniform begins at {values[0]:g}, which has no logarithm")
        raise_all(wrong)
        return self

    @property
    def kind(self) -> str:
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def extremes(self) -> list[Any]:
        """All values of a choice; the ends of a range."""
        return list(getattr(self, self.kind))

    @property
    def conditions(self) -> dict[str, list[Any]]:
        """`when`, with a list of values for each key."""
        return {key: value if isinstance(value, list) else [value] for key, value in self.when.items()}


class SearchConfig(Section):
    """A search over the keys of this config. A boosting round is an iteration, and then each consensus pass: the
    ensemble is measured after each of them.
    """

    space: dict[str, Parameter] = Field(
        min_length=1,
        description="Dotted key → its values. boosting.rounds and consensus.passes take an integer range and are never "
        "drawn: every trial measures all sizes up to the largest. Trials make passes if a key of consensus is here.",
    )
    trials: PositiveInt = Field(16, description="Number of points of the space to try.")
    concurrent: PositiveInt | None = Field(None, description="Trials at a time. Default: as many as fit.")
    searcher: Literal["random", "optuna"] = Field("optuna", description="optuna: tree-structured Parzen estimator.")
    startup_trials: PositiveInt = Field(
        5, description="Random points before optuna's estimator proposes the first one."
    )
    scheduler: Literal["asha", "median", "none"] = Field(
        "asha",
        description="Which trials stop before their last round. asha: the worse ones at each rung. median: those below "
        "the median. none: no trial.",
    )
    grace_rounds: PositiveInt = Field(1, description="Rounds that every trial gets before it may be stopped.")
    reduction_factor: Annotated[float, Field(gt=1)] = Field(
        2,
        description="For asha: at each rung one of this many trials continues, and the next rung is this many times "
        "further.",
    )
    objective: Literal["ensemble", "student"] = Field(
        "ensemble",
        description="student: trials that reach their end also train a student on the labels of their best ensemble.",
    )
    metric: Literal["exact_match", "token_accuracy", "nll", "option_accuracy"] = Field(
        "exact_match",
        description="exact_match: share of answers in which every token is the likeliest one, given the prompt and the "
        "true tokens before it; greedy decoding gives exactly these answers. nll, in nats per token, is minimised.",
    )
    validation: Literal["easy", "hard"] = Field(
        "easy",
        description="Which examples judge: easy_validation, or hard_validation (set data.sizes.hard_validation).",
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="Seed of the drawn points.")

    @property
    def mode(self) -> Literal["min", "max"]:
        return "min" if self.metric == "nll" else "max"

    @field_validator("space")
    @classmethod
    def _conditions_fit(cls, space: dict[str, Parameter]) -> dict[str, Parameter]:
        wrong = []
        for key, parameter in space.items():
            for other, values in parameter.conditions.items():
                where = f"{key}.when.{other}"
                if other not in space or space[other].choice is None:
                    wrong.append(f"{where} is no key of the space with a choice")
                elif missing := [value for value in values if value not in (space[other].choice or [])]:
                    wrong.append(f"{where}: {missing[0]!r} is none of its choices")
                elif list(space).index(other) >= list(space).index(key):
                    wrong.append(f"{where} must stand before {key}")
        raise_all(wrong)
        return space
