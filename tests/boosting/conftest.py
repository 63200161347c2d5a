"""Records of boosting rounds, with only what a test is about."""

from collections.abc import Sequence
from typing import Any

from ensemw2s.boosting.records import BoostedExpert, ExpertRecord, RoundRecord, RoundSeconds, WeightQuantiles

COST = {"seconds": 1.0, "tokens_trained": 20}


def expert_record(t: int, weight: float, k: int = 0, **others: Any) -> ExpertRecord:
    """Expert k of round t; its alpha is its vote."""
    figures = {"alpha": weight, "weighted_error": 0.1, "error": 0.1, "train_loss": 0.5, **COST, **others}
    return ExpertRecord(**{"name": f"rounds/{t}/experts/{k}", "base": "weak-0", "weight": weight, **figures})


def member(t: int, weight: float, k: int = 0, **others: Any) -> BoostedExpert:
    """The same with its round."""
    return BoostedExpert(round=t, **dict(expert_record(t, weight, k, **others)))


def round_record(t: int, weights: Sequence[float], **others: Any) -> RoundRecord:
    """Round t, with an expert for each weight."""
    quantiles = dict.fromkeys(("min", "p50", "p90", "p99", "max", "effective_fraction"), 1.0)
    found = {"alpha": 1.0, "weighted_error": 0.1, "reference_error": None, "accepted": True, "reset": False, **others}
    return RoundRecord(
        round=t,
        experts=tuple(expert_record(t, weight, k) for k, weight in enumerate(weights)),
        weights=WeightQuantiles(**quantiles),
        seconds=RoundSeconds(training=1.0, scoring=0.5),
        started=0.0,
        finished=1.5,
        **found,
    )
