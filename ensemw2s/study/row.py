"""A row of study.parquet: one system on one split in one run, with what the errors of its members have in common."""

from __future__ import annotations

from ensemw2s.evaluation.records import Interval
from ensemw2s.storage.record import Record


class MemberErrors(Record):
    """What the errors of an ensemble's members have in common, under teacher forcing.

    Attributes:
        error_correlation: Pearson's correlation of two members' errors over all tokens, averaged over pairs. None where
            no member of a pair has tokens right and wrong.
        both_wrong: Share of the tokens at which both members of a pair are wrong, averaged over pairs.
        same_wrong: Of these, the share at which both say the same; None where there are none.
        all_same_wrong: Share of the tokens at which all members say the same wrong token: no vote can repair these.
        member_token_accuracy: Share of the tokens that are right, mean over members.
        member_exact_match: Share of the examples without a wrong token, mean over members.
    """

    error_correlation: float | None = None
    both_wrong: float | None = None
    same_wrong: float | None = None
    all_same_wrong: float | None = None
    member_token_accuracy: float | None = None
    member_exact_match: float | None = None


class WrongAnswers(Record):
    """How often experts that decode alone give the same wrong answer.

    Attributes:
        same_wrong_answer: Of the prompts that both experts of a pair get wrong, the share with the same answer, over
            all pairs; None where there are none.
        all_same_wrong_answer: Share of the prompts to which all experts give the same wrong answer.
    """

    same_wrong_answer: float | None = None
    all_same_wrong_answer: float | None = None


class CommonErrors(WrongAnswers, MemberErrors):
    """Both of what the members of a vote have in common."""


class StudyRow(CommonErrors):
    """One system on one split in one run: a row of study.parquet.

    Attributes:
        study: Name of the study.
        task: Name of the task.
        variant: Name of the variant.
        seed: Seed of the run.
        system: Name of the system.
        split: `id`, `ood`, `validation` or `hard_validation`.
        exact_match: As in results.json, as are the four figures that follow, `ci95` and `n`.
        tokens_trained: Answer tokens seen in training, each epoch counted.
        supervision_trained: The same of those who made a student's labels.
        tokens_labelled: Tokens that they decoded for these labels.
        tokens_decoded: Tokens decoded for both test splits.
        train_seconds: Wall-clock seconds of training.
        decode_seconds: Seconds of decoding the test splits.
        rounds: Rounds of the ensemble.
        curve_rounds: Numbers of rounds, rising.
        curve: Exact match of the ensemble of so many rounds, under teacher forcing.
        pgr: Performance gap recovered.
        student_minus_weak: Exact match of the student minus that of the single expert.
        ceiling_minus_weak: Exact match of the ceiling minus that of the single expert.
        label_accuracy: Share of the labels that are right from which a student learnt.
        parameters: Weights of one model.
        fingerprint: Fingerprint of the run's evaluation.
    """

    study: str = ""
    task: str = ""
    variant: str = ""
    seed: int = 0
    system: str
    split: str
    exact_match: float | None = None
    forced_exact_match: float | None = None
    token_accuracy: float | None = None
    nll: float | None = None
    option_accuracy: float | None = None
    ci95: Interval | None = None
    n: int | None = None
    tokens_trained: float | None = None
    supervision_trained: float | None = None
    tokens_labelled: float | None = None
    tokens_decoded: float | None = None
    train_seconds: float | None = None
    decode_seconds: float | None = None
    rounds: int | None = None
    curve_rounds: tuple[int, ...] | None = None
    curve: tuple[float | None, ...] | None = None
    pgr: float | None = None
    student_minus_weak: float | None = None
    ceiling_minus_weak: float | None = None
    label_accuracy: float | None = None
    parameters: int | None = None
    fingerprint: str = ""
