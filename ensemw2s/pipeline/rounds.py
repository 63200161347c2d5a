"""The boosting rounds: experts are trained with weights from the rounds before, scored, and given their alphas.

The graph's rounds go in; each leaves its experts, `errors.parquet` (one bit per token) and `round.json`. Weights are
never stored, so a run that was killed anywhere goes on from the last finished round or expert.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ensemw2s import faults
from ensemw2s.boosting import samme
from ensemw2s.boosting.masks import RoundWeights, write_masks
from ensemw2s.boosting.records import (
    ExpertRecord,
    RoundRecord,
    RoundSeconds,
    TrainingSpent,
    WeightQuantiles,
    members_of,
)
from ensemw2s.boosting.scoring import predictions
from ensemw2s.data.examples import derive_seed
from ensemw2s.errors import BoostingError
from ensemw2s.pipeline.context import Context
from ensemw2s.pipeline.graph import Expert, Graph, Round
from ensemw2s.pipeline.segments import Easy
from ensemw2s.pipeline.specs import expert_spec, tracking_of
from ensemw2s.storage import store
from ensemw2s.training.curves import CurveWriter
from ensemw2s.training.records import TrainRecord


def run_rounds(context: Context) -> None:
    """Runs the rounds that are not done yet, until T are or boosting ends by itself.

    Raises:
        BoostingError: If no round at all was accepted.
    """
    for _ in each_round(context, context.graph.rounds):
        pass


def finished_rounds(graph: Graph, rounds: Sequence[Round]) -> list[RoundRecord]:
    """The records of those of these rounds that are done, in order, up to the last one."""
    history: list[RoundRecord] = []
    for r in rounds:
        if (history and is_last(graph, history)) or not store.is_done(r.stage.path, r.stage.description):
            break
        history.append(RoundRecord.read(r.stage.path))
    return history


def each_round(context: Context, rounds: Sequence[Round]) -> Iterator[list[RoundRecord]]:
    """Runs these rounds, and gives the records of all of them so far after every one, done before or not.

    Raises:
        BoostingError: If no round at all was accepted.
    """
    history: list[RoundRecord] = []
    for r in rounds:
        with store.alone(r.experts[0].stage.path) if context.graph.shared else nullcontext():
            if store.is_done(r.stage.path, r.stage.description):
                history.append(RoundRecord.read(r.stage.path))
            else:
                with context.stage(r.stage.name, f"boosting round {r.number} of {len(rounds)}"):
                    history.append(_run_round(context, rounds, r, history))
                _draw(context, r, history)
        last = history[-1]
        context.progress.say(
            f"  round {last.round}: weighted error {last.weighted_error:.4f}, alpha {last.alpha:.3f}"
            + ("" if last.accepted else ", not better than its reference: no vote")
        )
        yield list(history)
        if is_last(context.graph, history):
            break
    if not any(record.accepted for record in history):
        raise BoostingError(
            f"no round gave an expert with a positive alpha (round 1 had a weighted error of "
            f"{history[0].weighted_error:.3f}): train experts longer (expert.epochs){_asking_less(context)}"
        )


def _asking_less(context: Context) -> str:
    """What else helps where no expert is good enough: a reference that is easier to beat."""
    easier = {"pretrained": ", or set boosting.prior to none", "none": ", or set boosting.prior to samme"}
    return easier.get(context.config.boosting.prior, "")


def is_last(graph: Graph, history: list[RoundRecord]) -> bool:
    """Whether no round follows these."""
    ended = not history[-1].accepted and graph.config.boosting.on_failure != "skip"
    return ended or len(history) == len(graph.rounds)


def _draw(context: Context, r: Round, history: list[RoundRecord]) -> None:
    """Alpha and error by round, for people; all rounds anew each time, so that a run that was killed has them."""
    before, _, _ = r.stage.name.rpartition("rounds/")
    curves = CurveWriter(tracking_of(context.graph, f"{before}boosting"))
    for record in history:
        curves.point(record.round, {"alpha": record.alpha, "weighted_error": record.weighted_error})
    curves.close()


def round_weights(context: Context, rounds: Sequence[Round], history: list[RoundRecord], number: int) -> RoundWeights:
    """What the token weights of a round follow from: the accepted rounds since the last reset."""
    b = context.config.boosting
    masks: list[tuple[str, float]] = []
    for record in history:
        if record.reset:
            masks = []
        if record.accepted:
            errors = rounds[record.round - 1].stage.path / "errors.parquet"
            masks.append((str(errors.resolve()), record.alpha))
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
    """Experts trained on some weights, and how they did.

    Attributes:
        weights: What their token weights follow from.
        w: Weight of each unit, `[units]`, summing to 1.
        experts: The experts.
        trained: What the training of each says of itself, by name.
        tokens: What each expert predicts of each sample, `[experts, samples]`: its likeliest token, or a vote.
        errors: Weighted error of each expert.
        reference: Mean weighted error of the experts' bases; None unless the prior asks for it.
        alphas: Alpha of each expert.
        error: Weighted error of their vote.
        alpha: Alpha of their vote.
        mask: Where their vote is wrong, `[samples]`.
        seconds: What training and scoring took.
    """

    weights: RoundWeights
    w: NDArray[np.float64]
    experts: tuple[Expert, ...]
    trained: dict[str, TrainRecord]
    tokens: NDArray[np.integer]
    errors: list[float]
    reference: float | None
    alphas: list[float]
    error: float
    alpha: float
    mask: NDArray[np.bool_]
    seconds: RoundSeconds


def _run_round(context: Context, rounds: Sequence[Round], r: Round, history: list[RoundRecord]) -> RoundRecord:
    began = time.time()
    easy = Easy.read(context.graph)
    experts, retries = (_warmed(rounds, tries, history) for tries in (r.experts, r.retries))
    weights = round_weights(context, rounds, history, r.number)
    if any(expert.kept is not None for expert in experts):
        weights = weights.model_copy(update={"examples": len(easy.ids)})
    attempt = _attempt(context, easy, experts, weights)
    given_up = None
    if attempt.alpha <= 0 and context.config.boosting.on_failure == "retry" and attempt.weights.masks:
        context.progress.say(f"  round {r.number}: alpha {attempt.alpha:.3f}, tried again with uniform weights")
        uniform = attempt.weights.model_copy(update={"masks": []})
        given_up, attempt = attempt, _attempt(context, easy, retries, uniform)
    record = _record(r, easy, attempt, given_up, began=began)
    masks = {"round": attempt.mask}
    if context.config.boosting.error_from == "ensemble" and record.accepted:
        masks["round"] = _ensemble_mask(context, easy, [*history, record])
    masks |= {f"expert_{k}": tokens != easy.answers for k, tokens in enumerate(attempt.tokens)}
    faults.reach("boosting/scored")
    with store.publish(r.stage.path, r.stage.description) as folder:
        write_masks(folder / "errors.parquet", easy.ids, easy.lengths, masks)
        record.write(folder)
    return record


def _warmed(rounds: Sequence[Round], experts: tuple[Expert, ...], history: list[RoundRecord]) -> tuple[Expert, ...]:
    """Experts with a warm start take it from a second try, if that is the one that counts."""
    repeated = [rounds[record.round - 1] for record in history if record.reset]
    second = {
        first.stage.name: again.stage for r in repeated for first, again in zip(r.experts, r.retries, strict=True)
    }
    return tuple(
        replace(expert, warm_from=second.get(expert.warm_from.name, expert.warm_from)) if expert.warm_from else expert
        for expert in experts
    )


def _attempt(context: Context, easy: Easy, experts: tuple[Expert, ...], weights: RoundWeights) -> _Attempt:
    """Trains and scores the experts of a round on these weights."""
    config, began = context.config, time.monotonic()
    trained = context.lanes.train([expert_spec(context.graph, expert, weights=weights) for expert in experts])
    faults.reach("boosting/trained")
    ready = time.monotonic()
    models = [(str(expert.stage.path), expert.base) for expert in experts]
    bases = [(expert.base.reference, expert.base) for expert in experts]
    read = models + (bases if config.boosting.prior == "pretrained" else [])
    tokens = easy.votes(
        read,
        lambda table, some: predictions(
            table,
            some,
            pool=context.pool,
            reading=context.reading,
            on_progress=lambda done, total: context.progress.update("scoring", done, total, "examples"),
        ),
    )
    seconds = RoundSeconds(training=round(ready - began, 3), scoring=round(time.monotonic() - ready, 3))
    units, w = weights.units(easy.lengths), weights.weights(easy.lengths)

    def error_of(predicted: NDArray[np.integer]) -> float:
        return samme.weighted_error(w, samme.unit_errors(predicted != easy.answers, units))

    def alpha_of(error: float, reference: float | None) -> float:
        return samme.alpha(error, prior=config.boosting.prior, classes=context.vocabulary, reference=reference)

    experts_tokens = tokens[: len(models)]
    errors, references = ([error_of(p) for p in part] for part in (experts_tokens, tokens[len(models) :]))
    alphas = [alpha_of(error, references[k] if references else None) for k, error in enumerate(errors)]
    chosen = samme.committee_vote(experts_tokens, alphas)
    error, reference = error_of(chosen), float(np.mean(references)) if references else None
    return _Attempt(
        weights=weights,
        w=w,
        experts=experts,
        trained=trained,
        tokens=experts_tokens,
        errors=errors,
        reference=reference,
        alphas=alphas,
        error=error,
        alpha=alpha_of(error, reference),
        mask=chosen != easy.answers,
        seconds=seconds,
    )


def _record(r: Round, easy: Easy, attempt: _Attempt, given_up: _Attempt | None, *, began: float) -> RoundRecord:
    shares = samme.member_alphas(attempt.alpha, attempt.alphas)
    experts = []
    for k, expert in enumerate(attempt.experts):
        trained, spent = attempt.trained[expert.stage.name], None
        if given_up is not None:
            before = given_up.trained[given_up.experts[k].stage.name]
            spent = TrainingSpent(tokens_trained=before.tokens_trained, seconds=before.seconds)
        experts.append(
            ExpertRecord(
                name=expert.stage.name,
                base=expert.base.name,
                alpha=attempt.alphas[k],
                weight=shares[k],
                weighted_error=attempt.errors[k],
                error=float((attempt.tokens[k] != easy.answers).mean()),
                train_loss=trained.loss[-1],
                seconds=trained.seconds,
                tokens_trained=trained.tokens_trained,
                first_try=spent,
            )
        )
    return RoundRecord(
        round=r.number,
        alpha=attempt.alpha,
        weighted_error=attempt.error,
        reference_error=attempt.reference,
        accepted=attempt.alpha > 0 and any(share > 0 for share in shares),
        reset=given_up is not None,
        experts=tuple(experts),
        weights=_quantiles(attempt.w),
        seconds=attempt.seconds,
        started=began,
        finished=time.time(),
    )


def _quantiles(w: NDArray[np.float64]) -> WeightQuantiles:
    least, p50, p90, p99, most = map(float, np.quantile(w * len(w), [0.0, 0.5, 0.9, 0.99, 1.0]))
    effective = float(1.0 / (w**2).sum() / len(w))
    return WeightQuantiles(min=least, p50=p50, p90=p90, p99=p99, max=most, effective_fraction=effective)


def _ensemble_mask(context: Context, easy: Easy, history: list[RoundRecord]) -> NDArray[np.bool_]:
    """Errors of the vote of everything so far."""
    members = [m for m in members_of(history) if m.weight > 0]
    experts = [context.graph.expert(m.name) for m in members]
    tokens = easy.votes(
        [(str(expert.stage.path), expert.base) for expert in experts],
        lambda table, some: predictions(table, some, pool=context.pool, reading=context.reading),
    )
    return samme.committee_vote(tokens, [m.weight for m in members]) != easy.answers
