"""What a pilot found, as its file has it."""

from __future__ import annotations

from ensemw2s.storage.record import Record

PILOT = "pilot.json"
"""File of it, in the folder of the pilot's run."""


class Agreement(Record):
    """How often the experts agree on hard prompts, each answering by itself.

    Attributes:
        experts: Experts with a vote.
        prompts: Unlabelled hard prompts that were answered.
        share: Share of these on which all experts agree.
        short: The same of the third with the shortest prompts.
        long: The same of the third with the longest prompts.
        tests: Hard test examples.
        tests_share: Share of these on which all experts agree.
        right: Of those, the share of right answers; None where there are none.
        right_others: The ensemble's share of right answers to the others; None where there are none.
    """

    experts: int
    prompts: int
    share: float
    short: float
    long: float
    tests: int
    tests_share: float
    right: float | None
    right_others: float | None


class PilotResult(Record):
    """What a pilot found. Exact matches are shares of the test examples.

    Attributes:
        name: Name of the config.
        easy: Easy examples that were trained on.
        tests: Hard test examples.
        ensemble_easy: The ensemble on easy test examples.
        ensemble: The ensemble on hard ones.
        easy_only: The strong model on hard ones, after training on easy examples alone.
        ceiling: The same after training on true hard answers; None where too few are known.
        agreement: Of the experts; None where fewer than two have a vote.
        seconds: What is left of the whole run on this machine, estimated; None: it cannot be said.
        time: The same in a sentence.
    """

    name: str
    easy: int
    tests: int
    ensemble_easy: float
    ensemble: float
    easy_only: float
    ceiling: float | None
    agreement: Agreement | None
    seconds: float | None
    time: str
