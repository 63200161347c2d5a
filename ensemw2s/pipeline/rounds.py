"""The boosting rounds: experts are trained with weights from the rounds before, scored, and given their alphas.

The graph's rounds go in; each leaves its experts, `errors.parquet` (one bit a token) and `round.json`. Weights live
only between the two, so a run that was killed anywhere goes on from the last finished round or expert.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemw2s import faults
from ensemw2s.boosting import samme
from ensemw2s.boosting.masks import RoundWeights, write_masks
from ensemw2s.boosting.scoring import predictions
from ensemw2s.data.examples import derive_seed
from ensemw2s.data.tokens import TokenData
from ensemw2s.errors import BoostingError
from ensemw2s.pipeline.context import Context
from ensemw2s.pipeline.graph import Expert, Round
from ensemw2s.pipeline.specs import expert_spec, tracking_of
from ensemw2s.storage import store
from ensemw2s.training.curves import Curves

Facts = dict[str, Any]


def run_rounds(context: Context) -> list[Facts]:
    """Runs the rounds that are not done yet, until T are or boosting ends by itself.

    Returns:
        The facts of each round's round.json, in order.

    Raises:
        BoostingError: If no round at all was accepted.
    """
    history: list[Facts] = []
    for history in each_round(context):  # noqa: B007 (the last one counts)
        pass
    return history


def each_round(context: Context) -> Iterator[list[Facts]]:
    """As `run_rounds`, but gives the facts of all rounds so far after every round."""
    history: list[Facts] = []
    for r in context.graph.rounds:
        with store.alone(r.experts[0].stage.path) if context.graph.shared else nullcontext():
            if store.is_done(r.stage.path, r.stage.description):
                history.append(store.read_json(r.stage.path / "round.json"))
            else:
                with context.stage(r.stage.name, f"boosting round {r.number} of {len(context.graph.rounds)}"):
                    history.append(_run_round(context, r, history))
                _draw(context, history)
        facts = history[-1]
        context.progress.say(
            f"  round {facts['round']}: weighted error {facts['weighted_error']:.4f}, alpha {facts['alpha']:.3f}"
            + ("" if facts["accepted"] else ", not better than its reference: no vote")
        )
        yield list(history)
        if is_last(context, history):
            break
    if not any(facts["accepted"] for facts in history):
        raise BoostingError(
            f"no round gave an expert with a positive alpha (round 1 had a weighted error of "
            f"{history[0]['weighted_error']:.3f}): train experts longer (expert.epochs){_asking_less(context)}"
        )


def _asking_less(context: Context) -> str:
    """What else helps where no expert is good enough: a reference that is easier to beat."""
    easier = {"pretrained": ", or set boosting.prior to none", "none": ", or set boosting.prior to samme"}
    return easier.get(context.config.boosting.prior, "")


def is_last(context: Context, history: list[Facts]) -> bool:
    """Whether no round follows these."""
    ended = not history[-1]["accepted"] and context.config.boosting.on_failure != "skip"
    return ended or len(history) == len(context.graph.rounds)


def _draw(context: Context, history: list[Facts]) -> None:
    """Alpha and error by round, for people; all rounds anew each time, so that a run that was killed has them."""
    curves = Curves(tracking_of(context.graph, "boosting"))
    for facts in history:
        curves.point(facts["round"], {"alpha": facts["alpha"], "weighted_error": facts["weighted_error"]})
    curves.close()


def accepted_members(history: list[Facts]) -> list[Facts]:
    """The experts of all rounds, with `round`, in order; those of rounds without a vote have alpha 0."""
    return [{**expert, "round": facts["round"]} for facts in history for expert in facts["experts"]]


def round_weights(context: Context, history: list[Facts], number: int) -> RoundWeights:
    """What the token weights of a round follow from: the accepted rounds since the last reset."""
    b = context.config.boosting
    masks: list[tuple[str, float]] = []
    for facts in history:
        if facts["reset"]:
            masks = []
        if facts["accepted"]:
            errors = context.graph.rounds[facts["round"] - 1].stage.path / "errors.parquet"
            masks.append((str(errors.resolve()), facts["alpha"]))
    return RoundWeights(
        masks=masks,
        unit=b.unit,
        window=b.window,
        shrinkage=b.shrinkage,
        clip=b.weight_clip,
        weighting=b.weighting,
        bootstrap=b.bootstrap,
        seed=derive_seed(context.config.seed, "bootstrap", number),
    )


@dataclass(frozen=True)
class _Attempt:
    """Experts trained on some weights, and how they did."""

    weights: RoundWeights
    w: NDArray[np.float64]
    experts: tuple[Expert, ...]
    trained: dict[str, Facts]
    tokens: NDArray[np.int32]
    errors: list[float]
    references: list[float | None]
    alphas: list[float]
    error: float
    alpha: float
    mask: NDArray[np.bool_]
    seconds: dict[str, float]


def _run_round(context: Context, r: Round, history: list[Facts]) -> Facts:
    began = time.time()
    data = TokenData.read(context.graph.tokens.path / "easy_train.parquet")
    experts, retries = _warmed(context, r.experts, history), _warmed(context, r.retries, history)
    attempt = _attempt(context, data, experts, round_weights(context, history, r.number))
    given_up = None
    if attempt.alpha <= 0 and context.config.boosting.on_failure == "retry" and attempt.weights.masks:
        context.progress.say(f"  round {r.number}: alpha {attempt.alpha:.3f}, tried again with uniform weights")
        uniform = attempt.weights.model_copy(update={"masks": []})
        given_up, attempt = attempt, _attempt(context, data, retries, uniform)
    facts = _facts(context, r, attempt, given_up, began=began)
    masks = {"round": attempt.mask}
    if context.config.boosting.error_from == "ensemble" and facts["accepted"]:
        masks["round"] = _ensemble_mask(context, data, [*history, facts])
    answers = np.concatenate(data.answer_ids)
    masks |= {f"expert_{k}": tokens != answers for k, tokens in enumerate(attempt.tokens)}
    faults.reach("boosting/scored")
    with store.publish(r.stage.path, r.stage.description) as folder:
        write_masks(folder / "errors.parquet", data.ids, _lengths(data), masks)
        store.write_json(folder / "round.json", facts)
    return facts


def _warmed(context: Context, experts: tuple[Expert, ...], history: list[Facts]) -> tuple[Expert, ...]:
    """Experts with a warm start take it from the second try of the round before, if that is the one that counts."""
    if not (history and history[-1]["reset"]):
        return experts
    before = context.graph.rounds[history[-1]["round"] - 1].retries
    return tuple(
        replace(expert, warm_from=before[k].stage) if expert.warm_from is not None else expert
        for k, expert in enumerate(experts)
    )


def _attempt(context: Context, data: TokenData, experts: tuple[Expert, ...], weights: RoundWeights) -> _Attempt:
    """Trains and scores the experts of a round on these weights."""
    config, began = context.config, time.monotonic()
    trained = context.lanes.train([expert_spec(context.graph, expert, weights=weights) for expert in experts])
    faults.reach("boosting/trained")
    with_bases, ready = config.boosting.prior == "pretrained", time.monotonic()
    models = [str(expert.stage.path) for expert in experts]
    bases = [expert.base.reference for expert in experts] if with_bases else []
    tokens = predictions(
        context.graph.tokens.path / "easy_train.parquet",
        models + bases,
        labeling=config.labeling,
        actors=context.actors,
        on_progress=lambda done, total: context.progress.update("scoring", done, total, "examples"),
    )
    seconds = {"training": ready - began, "scoring": time.monotonic() - ready}
    answers = np.concatenate(data.answer_ids)
    units, w = weights.units(_lengths(data)), weights.weights(_lengths(data))

    def error_of(predicted: NDArray[Any]) -> float:
        return samme.weighted_error(w, samme.unit_errors(predicted != answers, units))

    experts_tokens, base_tokens = tokens[: len(models)], tokens[len(models) :]
    errors = [error_of(predicted) for predicted in experts_tokens]
    references: list[float | None] = [error_of(p) for p in base_tokens] if with_bases else [None] * len(models)
    vocabulary = context.vocabulary
    alphas = [
        samme.alpha(error, prior=config.boosting.prior, classes=vocabulary, reference=reference)
        for error, reference in zip(errors, references, strict=True)
    ]
    chosen = samme.committee_vote(experts_tokens, alphas)
    error = error_of(chosen)
    known = [reference for reference in references if reference is not None]
    alpha = samme.alpha(
        error,
        prior=config.boosting.prior,
        classes=vocabulary,
        reference=float(np.mean(known)) if known else None,
    )
    return _Attempt(
        weights,
        w,
        experts,
        trained,
        experts_tokens,
        errors,
        references,
        alphas,
        error,
        alpha,
        chosen != answers,
        seconds,
    )


def _facts(context: Context, r: Round, attempt: _Attempt, given_up: _Attempt | None, *, began: float) -> Facts:
    shares = samme.member_alphas(attempt.alpha, attempt.alphas)
    relative = attempt.w * len(attempt.w)
    quantiles = np.quantile(relative, [0.0, 0.5, 0.9, 0.99, 1.0])
    known = [reference for reference in attempt.references if reference is not None]
    experts = []
    for k, expert in enumerate(attempt.experts):
        trained = attempt.trained[expert.stage.name]
        experts.append(
            {
                "name": expert.stage.name,
                "base": expert.base.name,
                "alpha": attempt.alphas[k],
                "weight": shares[k],
                "weighted_error": attempt.errors[k],
                "error": float((attempt.tokens[k] != _answers(context)).mean()),
                "train_loss": trained["loss"][-1],
                "seconds": trained["seconds"],
                "tokens_trained": trained["tokens_trained"],
            }
        )
        if given_up is not None:
            spent = given_up.trained[given_up.experts[k].stage.name]
            experts[-1]["first_try"] = {key: spent[key] for key in ("tokens_trained", "seconds")}
    return {
        "round": r.number,
        "alpha": attempt.alpha,
        "weighted_error": attempt.error,
        "reference_error": float(np.mean(known)) if known else None,
        "accepted": attempt.alpha > 0 and any(share > 0 for share in shares),
        "reset": given_up is not None,
        "experts": experts,
        "weights": {
            **dict(zip(("min", "p50", "p90", "p99", "max"), map(float, quantiles), strict=True)),
            "effective_fraction": float(1.0 / (attempt.w**2).sum() / len(attempt.w)),
        },
        "seconds": {part: round(value, 3) for part, value in attempt.seconds.items()},
        "started": began,
        "finished": time.time(),
    }


def _answers(context: Context) -> NDArray[np.int32]:
    data = TokenData.read(context.graph.tokens.path / "easy_train.parquet")
    return np.concatenate(data.answer_ids)


def _lengths(data: TokenData) -> list[int]:
    return [len(answer) for answer in data.answer_ids]


def _ensemble_mask(context: Context, data: TokenData, history: list[Facts]) -> NDArray[np.bool_]:
    """Errors of the vote of everything so far."""
    members = [m for m in accepted_members(history) if m["weight"] > 0]
    tokens = predictions(
        context.graph.tokens.path / "easy_train.parquet",
        [str(context.graph.expert_folder(m["name"])) for m in members],
        labeling=context.config.labeling,
        actors=context.actors,
    )
    return samme.committee_vote(tokens, [m["weight"] for m in members]) != np.concatenate(data.answer_ids)
