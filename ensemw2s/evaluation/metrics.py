"""Per-example outcomes in, the figures of results.json out, each with its 95 % interval.

Everything here is a pure function of arrays and a seed: no model, no file, no Ray, so that every number of a report can
be checked by hand. Fractions stay fractions (0.05); only the report writes them as per cent and points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from ensemw2s.data.answers import Key
from ensemw2s.errors import DataError
from ensemw2s.evaluation.records import Difference, Metrics, Pgr, Verdict
from ensemw2s.evaluation.records_labels import AgreementBin

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]

CONFIDENCE = 0.95
FEW = 50
"""Examples below which no comparison is decided."""

_CELLS_AT_ONCE = 2**22


def exact_match(predictions: Sequence[str], truths: Sequence[str], key: Callable[[str], Key] = str.strip) -> BoolArray:
    """Which predictions are the true answer.

    Args:
        predictions: n decoded answers.
        truths: n true answers, in the same order.
        key: What is compared (`answer_key`). Default: the text, white space at both ends aside.

    Returns:
        Array [n], bool.

    Raises:
        DataError: When there are not as many predictions as truths.
    """
    if len(predictions) != len(truths):
        raise DataError(
            f"{len(predictions)} predictions but {len(truths)} true answers: they must be of the same examples"
        )
    return np.array([key(p) == key(t) for p, t in zip(predictions, truths, strict=True)], dtype=np.bool_)


def interval(values: npt.ArrayLike, *, samples: int, seed: int) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean (Efron 1979).

    It speaks of the examples that could have been drawn, not of the seeds that training could have had. Values that are
    all equal give an interval of no width.

    Args:
        values: Array [n] of one figure for each example, bool or number.
        samples: Resamples, each n examples drawn with replacement.
        seed: The same seed gives the same interval.

    Returns:
        Lower and upper end, in the unit of the values.

    Raises:
        DataError: When there are no values, or one is not finite.
    """
    column = _column(values)
    return _percentiles(_resampled_means(column[:, None], samples, seed)[:, 0])


def verdict(lo: float, hi: float, *, n: int | None = None, figures: Sequence[tuple[float, float]] = ()) -> Verdict:
    """What an interval of a difference lets one say.

    Args:
        lo: Lower end of the interval.
        hi: Upper end.
        n: Number of examples; fewer than `FEW` are too few to tell.
        figures: Intervals of both systems' own figures. A difference that cannot be seen where one of them reaches 0 or
            1 is not one that cannot be there: the split is too hard or too easy for these systems.

    Returns:
        better, worse, or no difference when the interval includes 0; too few to tell; saturated.
    """
    if n is not None and n < FEW:
        return "too few to tell"
    if lo > 0:
        return "better"
    if hi < 0:
        return "worse"
    return "saturated" if any(low <= 0 or high >= 1 for low, high in figures) else "no difference"


def paired_difference(a: npt.ArrayLike, b: npt.ArrayLike, *, samples: int, seed: int) -> Difference:
    """Mean of a − b over the same examples; resampling pairs cancels what makes an example hard for both.

    Args:
        a: Array [n] of one figure for each example, larger is better.
        b: Array [n] of the other system, in the same order.
        samples: Bootstrap resamples.
        seed: Seed of the resamples.

    Returns:
        The mean difference and its interval, in the unit of the values.

    Raises:
        DataError: When the arrays are empty or of different lengths, or a value is not finite.
    """
    left, right = _same_length(a=a, b=b)
    difference = left - right
    return Difference(difference=float(difference.mean()), ci95=interval(difference, samples=samples, seed=seed))


def metrics(
    exact: npt.ArrayLike,
    *,
    forced: npt.ArrayLike | None = None,
    token_correct: npt.ArrayLike | None = None,
    n_tokens: npt.ArrayLike | None = None,
    nll_sum: npt.ArrayLike | None = None,
    options: Mapping[str, npt.ArrayLike] = MappingProxyType({}),
    samples: int,
    seed: int,
) -> Metrics:
    """The figures of one system on one split.

    Args:
        exact: Array [n], bool: the decoded answer is the true one.
        forced: Array [n], bool: the teacher-forced argmax is right at every token of the answer.
        token_correct: Array [n], int: answer tokens (the end token among them) whose teacher-forced argmax is right.
        n_tokens: Array [n], int: answer tokens, the end token among them. Needed beside the two figures of tokens.
        nll_sum: Array [n], float: negative log-likelihood of the true answer in nats, summed over its tokens.
        options: Name of a figure of options → array [k], bool: of the examples with options, whether the option that is
            likeliest by its measure is the true one.
        samples: Bootstrap resamples of the interval.
        seed: Seed of the resamples.

    Returns:
        The figures; one whose array is not given is None.

    Raises:
        DataError: When there are no examples, or the arrays are not of the same examples.
    """
    hits = _column(exact)
    tokens = None if n_tokens is None else _same_length(exact=exact, n_tokens=n_tokens)[1].sum()

    def per_token(values: npt.ArrayLike | None, name: str) -> float | None:
        if values is None or tokens is None:
            return None
        array = np.asarray(values, dtype=np.float64)
        if array.shape != hits.shape:
            raise DataError(f"{name} has shape {array.shape}, expected one value for each of the {len(hits)} examples")
        mean = float(array.sum() / tokens) if tokens else float("nan")
        return mean if np.isfinite(mean) else None

    shares = {name: np.asarray(right, dtype=np.float64) for name, right in options.items()}
    return Metrics(
        exact_match=float(hits.mean()),
        forced_exact_match=None if forced is None else float(_same_length(exact=exact, forced=forced)[1].mean()),
        token_accuracy=per_token(token_correct, "token_correct"),
        nll=per_token(nll_sum, "nll_sum"),
        n=len(hits),
        ci95=interval(hits, samples=samples, seed=seed),
        **{name: float(right.mean()) for name, right in shares.items() if right.size},
    )


def pgr(weak: npt.ArrayLike, student: npt.ArrayLike, ceiling: npt.ArrayLike, *, samples: int, seed: int) -> Pgr:
    """Performance gap recovered, (student − weak) / (ceiling − weak), Burns et al. 2023, with the plain differences.

    Args:
        weak: Array [n], bool: exact match of the weak expert, for each example.
        student: Array [n], bool: of the student, on the same examples.
        ceiling: Array [n], bool: of the student trained on true labels.
        samples: Bootstrap resamples; all three are resampled together.
        seed: Seed of the resamples.

    Returns:
        The ratio and the differences. The ratio is None, with the reason, where the ceiling is not above the weak
        expert. Its interval is None where over 2.5 % of the resamples have no gap: the ratio then has no bounds.

    Raises:
        DataError: When the arrays are empty or of different lengths.
    """
    columns = np.stack(_same_length(weak=weak, student=student, ceiling=ceiling), axis=1)
    w, s, c = columns.mean(axis=0).tolist()
    means = _resampled_means(columns, samples, seed)
    gain, gap = means[:, 1] - means[:, 0], means[:, 2] - means[:, 0]
    value, reason, ci95 = None, None, None
    if c > w:
        value = (s - w) / (c - w)
        if np.mean(gap <= 0) <= (1 - CONFIDENCE) / 2:
            ci95 = _percentiles(gain[gap > 0] / gap[gap > 0])
    else:
        reason = f"the ceiling ({c:.3f}) is not above the weak expert ({w:.3f}), so there is no gap to recover"
    return Pgr(
        value=value,
        ci95=ci95,
        reason=reason,
        student_minus_weak=Difference(difference=s - w, ci95=_percentiles(gain)),
        ceiling_minus_weak=Difference(difference=c - w, ci95=_percentiles(gap)),
    )


def agreement_bins(agreement: npt.ArrayLike, correct: npt.ArrayLike, *, bins: int = 10) -> tuple[AgreementBin, ...]:
    """How often labels are right, by how much the experts agreed on them.

    Args:
        agreement: Array [n], float in [0, 1].
        correct: Array [n], bool: the label is the true answer.
        bins: Number of equally wide bins over [0, 1].

    Returns:
        Every bin, empty ones too. A bin holds lo ≤ agreement < hi, the last one 1 as well.

    Raises:
        DataError: When the arrays are of different lengths, or an agreement is outside [0, 1].
    """
    if np.size(agreement) == 0 and np.size(correct) == 0:
        level, right = np.empty(0), np.empty(0)
    else:
        level, right = _same_length(agreement=agreement, correct=correct)
    # Shares are sums of float weights, so a unanimous vote may be a rounding error above 1, or below a bin's edge.
    level = np.round(level, 6)
    if level.size and (level.min() < 0 or level.max() > 1):
        raise DataError(f"agreement must be in [0, 1], found {level.min():g} to {level.max():g}")
    edges = np.round(np.linspace(0, 1, bins + 1), 6)
    where = np.minimum(np.searchsorted(edges, level, side="right") - 1, bins - 1)
    counts = np.bincount(where, minlength=bins)
    hits = np.bincount(where, weights=right, minlength=bins)
    return tuple(
        AgreementBin(
            lo=float(edges[i]),
            hi=float(edges[i + 1]),
            n=int(counts[i]),
            accuracy=float(hits[i] / counts[i]) if counts[i] else None,
        )
        for i in range(bins)
    )


def majority_vote(
    answers: Sequence[Sequence[str]], weights: Sequence[float], key: Callable[[str], Key] = str.strip
) -> list[tuple[str, float]]:
    """Sequence-level weighted vote: whole answers are counted, as conventional supervision by several models does.

    Args:
        answers: `answers[m][i]` is what member m answers to prompt i.
        weights: Weight of each member, not negative, such as its alpha.
        key: What is compared of answers (`answer_key`). Default: the text, white space at both ends aside.

    Returns:
        For each prompt the (stripped) answer with the largest weight behind it, and its share of all weight. Among
        tied answers the one that the heaviest member gave wins; among equally heavy members the first. Of answers that
        are the same but for their spelling, it is that of the heaviest member.

    Raises:
        DataError: When members and weights do not match, or no member has weight.
    """
    if len(answers) != len(weights):
        raise DataError(f"{len(answers)} members answered but {len(weights)} weights were given")
    total = float(sum(weights))
    if not (total > 0 and min(weights) >= 0):
        raise DataError(f"weights of a vote must not be negative and one must be positive, got {list(weights)}")
    if len({len(member) for member in answers}) > 1:
        raise DataError(f"members answered different numbers of prompts: {[len(member) for member in answers]}")
    heaviest_first = sorted(range(len(weights)), key=lambda m: -weights[m])
    winners = []
    for given in zip(*answers, strict=True):
        keys = [key(answer) for answer in given]
        support: dict[Key, float] = {}
        for m in heaviest_first:
            support[keys[m]] = support.get(keys[m], 0.0) + weights[m]
        most = max(support.values())
        # The dictionary is in the order of the heaviest supporter; sums of floats tie up to rounding.
        winner = next(found for found, weight in support.items() if weight >= most * (1 - 1e-9))
        spelt = next(given[m].strip() for m in heaviest_first if keys[m] == winner)
        winners.append((spelt, support[winner] / total))
    return winners


def _resampled_means(columns: FloatArray, samples: int, seed: int) -> FloatArray:
    """Means of `samples` bootstrap resamples of the rows of `columns` [n, k]; returns [samples, k].

    How often each distinct row is drawn is multinomial, so drawing those counts is the same as drawing rows, and for
    outcomes that are right or wrong it takes a few draws a resample in place of n. SciPy's bootstrap draws rows.
    """
    rows, counts = np.unique(columns, axis=0, return_counts=True)
    n = len(columns)
    rng = np.random.default_rng(seed)
    at_once = max(1, _CELLS_AT_ONCE // len(rows))
    parts = []
    for start in range(0, samples, at_once):
        drawn = rng.multinomial(n, counts / n, size=min(at_once, samples - start))
        parts.append(drawn @ rows / n)
    return np.concatenate(parts)


def _percentiles(means: FloatArray) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    # Rounded, so that an end that is 0 but for the rounding of sums does not decide a comparison.
    lo, hi = np.round(np.quantile(means, [tail, 1 - tail]), 12) + 0.0
    return float(lo), float(hi)


def _column(values: npt.ArrayLike, name: str = "values") -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise DataError(f"{name} has shape {array.shape}, expected one value for each of at least one example")
    if not np.isfinite(array).all():
        raise DataError(f"{name} holds {np.count_nonzero(~np.isfinite(array))} values that are not finite")
    return array


def _same_length(**arrays: npt.ArrayLike) -> list[FloatArray]:
    columns = [_column(values, name) for name, values in arrays.items()]
    if len({len(column) for column in columns}) > 1:
        sizes = ", ".join(f"{name} {len(column)}" for name, column in zip(arrays, columns, strict=True))
        raise DataError(f"the arrays must be of the same examples, but their lengths differ: {sizes}")
    return columns
