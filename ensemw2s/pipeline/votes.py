"""What each expert's vote counts: the rounds' alphas go in, weights and temperatures of the members come out.

Alphas come from the training tokens. Votes may also be equal, or be fitted on every other example of easy validation;
the other half of it then judges. The maths of the fit is in `ensemble.refit`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ensemw2s.boosting.records import (
    BoostedExpert,
    ExpertRecord,
    FitLoss,
    HalfCounts,
    HalfLoss,
    RoundRecord,
    VoteFit,
    members_of,
)
from ensemw2s.boosting.scoring import Likelihoods, likelihoods
from ensemw2s.data.tokens import TokenData
from ensemw2s.ensemble.anchor import Anchor
from ensemw2s.ensemble.manifest import MemberEntry
from ensemw2s.ensemble.refit import TEMPERATURES, best_temperature, mixture_nll, mixture_weights
from ensemw2s.pipeline.context import Context

FITTED = slice(0, None, 2)
"""Examples of easy validation on which votes are fitted."""

HELD_OUT = slice(1, None, 2)
"""The others, on which an ensemble with fitted votes and its rivals are judged."""


def weighed_members(history: Sequence[RoundRecord], weights: str) -> list[BoostedExpert]:
    """The experts of all rounds with equal votes, or with votes by alpha; fitted votes start from the latter."""
    members = members_of(history)
    if weights != "uniform":
        return members
    return [member.model_copy(update={"weight": float(member.weight > 0)}) for member in members]


def with_votes(history: Sequence[RoundRecord], members: Sequence[MemberEntry]) -> list[RoundRecord]:
    """The rounds with the votes that the ensemble really has.

    Args:
        history: The records of the rounds.
        members: What ensemble.json says of their experts, in the same order.

    Returns:
        The same records with other `weight`s, and with a `temperature` each where any expert has one.
    """
    entries, calibrated = iter(members), any(entry.temperature != 1 for entry in members)

    def voting(expert: ExpertRecord) -> ExpertRecord:
        entry = next(entries)
        temperature = entry.temperature if calibrated else None
        return expert.model_copy(update={"weight": entry.weight, "temperature": temperature})

    return [record.model_copy(update={"experts": tuple(map(voting, record.experts))}) for record in history]


def fit_votes(
    context: Context, members: Sequence[BoostedExpert], anchors: Sequence[Anchor] = ()
) -> tuple[list[BoostedExpert], VoteFit]:
    """Fits temperatures, then weights, as the config asks for, on half of easy validation.

    Args:
        context: The run; its tokens are done.
        members: Of `weighed_members`.
        anchors: How those with a vote are mixed with their bases; empty: not at all.

    Returns:
        The members with fitted weights and temperatures, and the record of the fit. Members that had no vote stay as
        they are.
    """
    config = context.config.ensemble
    voting = [member for member in members if member.weight > 0]
    table = context.graph.tokens.path / "easy_validation.parquet"
    lengths = [len(answer) for answer in TokenData.read(table).answer_ids]
    weights, temperatures = [m.weight for m in voting], [1.0] * len(voting)

    def scored(grid: bool) -> Likelihoods:
        return likelihoods(
            table,
            [str(context.graph.expert_folder(member.name)) for member in voting],
            weights=weights,
            temperatures=temperatures,
            rule=config.combine,
            grid=TEMPERATURES.tolist() if grid else [],
            pool=context.pool,
            reading=context.reading,
            anchors=anchors,
            on_progress=lambda done, total: context.progress.update("votes", done, total, "examples"),
        )

    before = found = scored(grid=config.calibration == "temperature")
    if config.calibration == "temperature":
        temperatures = [best_temperature(nll) for nll in before.scaled_nll[:, :, FITTED].sum(axis=-1).T]
        found = scored(grid=False)
    after: NDArray[np.floating] = found.nll
    if config.weights == "stacked":
        shares = mixture_weights(found.member_logprobs[:, _tokens_of(FITTED, lengths)])
        weights, after = shares.tolist(), mixture_nll(found.member_logprobs, shares)
    votes = {m.name: {"weight": w, "temperature": t} for m, w, t in zip(voting, weights, temperatures, strict=True)}
    fit = VoteFit(
        examples=HalfCounts(fitted=len(lengths[FITTED]), held_out=len(lengths[HELD_OUT])),
        nll=FitLoss(before=_by_half(before.nll, lengths), after=_by_half(after, lengths)),
    )
    return [m.model_copy(update=votes.get(m.name, {})) for m in members], fit


def said_of_votes(members: Sequence[BoostedExpert], fit: VoteFit) -> str:
    """One line about fitted votes, for people."""
    voting = [member for member in members if member.weight > 0]
    total = sum(member.weight for member in voting)
    votes = ", ".join(
        f"{m.weight / total:.3f}" + (f" at temperature {m.temperature:.3g}" if m.temperature not in (None, 1) else "")
        for m in voting
    )
    without = [m.name for m in members if m.weight == 0 and m.temperature is not None]
    before, after = fit.nll.before, fit.nll.after
    return (
        f"  votes: {votes}; loss on easy validation, in nats per token: from {before.fitted:.4f} to {after.fitted:.4f} "
        f"on the fitted half, from {before.held_out:.4f} to {after.held_out:.4f} on the other"
        + (f"; no vote: {', '.join(without)}" if without else "")
    )


def _tokens_of(half: slice, lengths: list[int]) -> NDArray[np.bool_]:
    """Which answer tokens belong to a half of the examples, `[tokens]`."""
    chosen = np.zeros(len(lengths), bool)
    chosen[half] = True
    return np.repeat(chosen, lengths)


def _by_half(nll: NDArray[np.floating], lengths: list[int]) -> HalfLoss:
    """Mean over the answer tokens of each half, in nats; `nll` is `[tokens]`."""

    def mean(half: slice) -> float:
        return float(nll[_tokens_of(half, lengths)].mean(dtype="float64"))

    return HalfLoss(fitted=mean(FITTED), held_out=mean(HELD_OUT))
