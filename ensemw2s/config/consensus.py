"""The section `consensus` of the config: passes in which the members learn from their own answers to hard prompts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ensemw2s.config.boosting import Anchor
from ensemw2s.config.section import Fraction, Section


class ConsensusConfig(Section):
    """Consensus passes: the ensemble answers the unlabelled hard prompts, and all members are boosted anew from their
    bases on the easy examples and the answers on which they agree. No hard label is read.
    """

    passes: Annotated[int, Field(ge=0, le=20)] = Field(0, description="Number of passes, after the boosting rounds.")
    fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="Keep at most this share of the hard prompts, those with the highest agreement."
    )
    anchor: Anchor = Field(
        "auto",
        description="The anchor (boosting.anchor) at which the ensemble answers; auto is found once, before the first "
        "pass.",
    )
    weight: Annotated[float, Field(gt=0, le=1)] = Field(
        0.3, description="What a token of a kept answer counts in training; a token of an easy example counts 1."
    )
    agreement: Literal["token", "answer"] = Field(
        "token",
        description="token: the least share of votes over an answer's tokens. answer: the share of members whose own "
        "whole answer is this one (each member answers all prompts, too).",
    )
    judge: Literal["auto", "bases", "none"] = Field(
        "auto",
        description="A second judge, who must give the same answer. bases: the vote of the untuned bases. auto: the "
        "bases, if they answer a tenth as many easy validation examples as the ensemble does. Without a judge the "
        "gate is stricter.",
    )
    min_precision: Fraction = Field(
        0.95,
        description="The gate: only answers above the agreement at which easy validation answers are right so often, "
        "as a share of how often those of the highest agreement are right. Where fewer than a tenth of the prompts "
        "pass, there is no pass. 0 lets everything pass.",
    )
