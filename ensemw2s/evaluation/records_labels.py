"""What results.json says of pseudo-labels: how good they are, and how those were chosen that students learned."""

from __future__ import annotations

from ensemw2s.storage.record import ByName, SparseRecord


class AgreementBin(SparseRecord):
    """Labels on which the experts agreed to a similar degree.

    Attributes:
        lo: Least agreement, a share of all votes.
        hi: Agreement that is too much for this bin; the last bin has 1 as well.
        n: Number of labels.
        accuracy: Share of them that are right; None where there are none.
    """

    lo: float
    hi: float
    n: int = 0
    accuracy: float | None = None


class LabelResult(SparseRecord):
    """How good the pseudo-labels of one maker are.

    Attributes:
        n: Number of labels.
        accuracy: Share of the labels that are right, of the prompts whose answer is known.
        agreement_bins: The same by the agreement of the experts.
        finish_reasons: Why decoding ended (`stop`, `length`, …) → number of labels.
    """

    n: int | None = None
    accuracy: float | None = None
    agreement_bins: tuple[AgreementBin, ...] = ()
    finish_reasons: ByName[int] = {}


class ChoiceResult(SparseRecord):
    """How the pseudo-labels of a student were chosen, and how good those are that it learned.

    Attributes:
        labels: How they were chosen, as in `student.labels`.
        prompts: Labels of the maker.
        agreed: Share of the prompts on which the maker and the student of the easy data alone agree. None: not asked.
        kept: Labels that were learned.
        weight: What the loss of a kept label on which the two differ counts; that of all others counts 1.
        accuracy: Share of the kept labels that are right, of the prompts whose answer is known.
        agreed_accuracy: The same of the kept labels on which the two agree.
        easy_only: Whether the two agree too seldom for `auto`: the student is that of the easy data alone.
    """

    labels: str
    prompts: int
    kept: int
    weight: float = 1.0
    agreed: float | None = None
    accuracy: float | None = None
    agreed_accuracy: float | None = None
    easy_only: bool = False
