"""What each expert's vote counts: the rounds' alphas go in, weights and temperatures of the members come out.

Alphas are made on the training tokens. Here votes may also be equal, or be fitted on easy validation: on every other
example of it, so that the rest can still judge. The maths of the fit is `ensemble.refit`'s.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemw2s.boosting.scoring import Likelihoods, likelihoods
from ensemw2s.data.tokens import TokenData
from ensemw2s.ensemble.manifest import MemberEntry
from ensemw2s.ensemble.refit import TEMPERATURES, best_temperature, mixture_nll, mixture_weights
from ensemw2s.pipeline.context import Context
from ensemw2s.pipeline.rounds import accepted_members

Facts = dict[str, Any]

FITTED = slice(0, None, 2)
"""Examples of easy validation on which votes are fitted."""

HELD_OUT = slice(1, None, 2)
"""The others, which judge an ensemble with fitted votes, and all that it is compared with."""


def weighed_members(history: list[Facts], weights: str) -> list[Facts]:
    """The experts of all rounds as `ensemble.weights` has them before anything is fitted: equal votes, or by alpha."""
    members = accepted_members(history)
    if weights != "uniform":
        return members
    return [{**member, "weight": float(member["weight"] > 0)} for member in members]


def with_votes(history: list[Facts], members: list[MemberEntry]) -> list[Facts]:
    """The rounds' facts with the votes that the ensemble really has.

    Args:
        history: The facts of each round.
        members: What ensemble.json says of their experts, in the same order.

    Returns:
        The same facts with other `weight`s, and a `temperature` where any expert has one.
    """
    entries, calibrated = iter(members), any(entry.temperature != 1 for entry in members)

    def voting(expert: Facts) -> Facts:
        entry = next(entries)
        return {**expert, "weight": entry.weight} | ({"temperature": entry.temperature} if calibrated else {})

    return [{**facts, "experts": [voting(expert) for expert in facts["experts"]]} for facts in history]


def fit_votes(context: Context, members: list[Facts]) -> tuple[list[Facts], Facts]:
    """Fits temperatures, then weights, as the config asks for, on half of easy validation.

    Args:
        context: The run; its tokens are done.
        members: Of `weighed_members`.

    Returns:
        The members with other weights and `temperature`s (those that had no vote get none), and what is worth knowing
        of the fit: numbers of `examples`, and `nll`, nats a token of the ensemble `before` and `after`, of those on
        which it was `fitted` and those `held_out`.
    """
    config = context.config.ensemble
    voting = [member for member in members if member["weight"] > 0]
    table = context.graph.tokens.path / "easy_validation.parquet"
    lengths = [len(answer) for answer in TokenData.read(table).answer_ids]
    weights, temperatures = [float(m["weight"]) for m in voting], [1.0] * len(voting)

    def scored(grid: bool) -> Likelihoods:
        return likelihoods(
            table,
            [str(context.graph.expert_folder(member["name"])) for member in voting],
            weights=weights,
            temperatures=temperatures,
            rule=config.combine,
            grid=TEMPERATURES.tolist() if grid else [],
            labeling=context.config.labeling,
            actors=context.actors,
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
    votes = {m["name"]: {"weight": w, "temperature": t} for m, w, t in zip(voting, weights, temperatures, strict=True)}
    return [{**m, **votes.get(m["name"], {})} for m in members], {
        "examples": {"fitted": len(lengths[FITTED]), "held_out": len(lengths[HELD_OUT])},
        "nll": {"before": _by_half(before.nll, lengths), "after": _by_half(after, lengths)},
    }


def said_of_votes(members: list[Facts], fit: Facts) -> str:
    """One line about fitted votes, for people."""
    voting = [member for member in members if member["weight"] > 0]
    total = sum(member["weight"] for member in voting)
    votes = ", ".join(
        f"{m['weight'] / total:.3f}" + (f" at temperature {m['temperature']:.3g}" if m["temperature"] != 1 else "")
        for m in voting
    )
    without = [m["name"] for m in members if m["weight"] == 0 and "temperature" in m]
    before, after = fit["nll"]["before"], fit["nll"]["after"]
    return (
        f"  votes: {votes}; nats a token of easy validation from {before['fitted']:.4f} to {after['fitted']:.4f} where "
        f"fitted, from {before['held_out']:.4f} to {after['held_out']:.4f} elsewhere"
        + (f"; no vote: {', '.join(without)}" if without else "")
    )


def _tokens_of(half: slice, lengths: list[int]) -> NDArray[np.bool_]:
    """Which answer tokens belong to a half of the examples, `[tokens]`."""
    chosen = np.zeros(len(lengths), bool)
    chosen[half] = True
    return np.repeat(chosen, lengths)


def _by_half(nll: NDArray[np.floating], lengths: list[int]) -> dict[str, float]:
    """Mean over the answer tokens of each half, in nats; `nll` is `[tokens]`."""
    halves = {"fitted": FITTED, "held_out": HELD_OUT}
    return {name: float(nll[_tokens_of(half, lengths)].mean(dtype="float64")) for name, half in halves.items()}
