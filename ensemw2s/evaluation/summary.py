"""Results in, plain sentences out: what was reached, and against whom the ensemble and its student do not win.

Apart from the report because these sentences are claims: each follows from a figure by a rule that a test can hold, and
the terminal prints the same ones as the page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ensemw2s.boosting.records import RoundRecord
from ensemw2s.config.systems import (
    ENSEMW2S,
    EXPERT_SINGLE,
    STUDENT_CEILING,
    STUDENT_EASY_ONLY,
    STUDENT_ENSEMW2S,
    TABLE,
)
from ensemw2s.evaluation.records import RunResults
from ensemw2s.evaluation.wording import (
    SPLITS,
    Bout,
    amount,
    compared,
    in_a_sentence,
    listed,
    number,
    percent,
    percent_range,
    plain,
    points,
    points_range,
    systems_of,
)


@dataclass(frozen=True)
class Contest:
    """How one system did against its rivals.

    Attributes:
        who: The system, as a sentence begins with it.
        record: How many comparisons it wins, or that there are none.
        wins: A sentence for each rival that it beats on some split.
        not_wins: A sentence for each rival that it does not beat on some split.
        untested: What was not run or not compared, when anything was not.
    """

    who: str
    record: str
    wins: list[str] = field(default_factory=list)
    not_wins: list[str] = field(default_factory=list)
    untested: str = ""


@dataclass(frozen=True)
class Summary:
    """The opening of a report: paragraphs on what was reached, the contests, sentences of caution, and warnings."""

    reached: list[str]
    contests: list[Contest]
    caveats: list[str]
    warnings: list[str] = field(default_factory=list)


UNDECIDED = ("saturated", "too few to tell")
"""Verdicts that are none."""


def summarise(results: RunResults) -> Summary:
    """Says in sentences what the numbers of a run say.

    Args:
        results: Figures of a run; systems and figures may be missing.

    Returns:
        Sentences in the order in which they should be read.
    """
    reached = [
        f"{_accuracy(results, ENSEMW2S)} {_cost(results)} {_rounds(results)}".strip(),
        " ".join(
            [_accuracy(results, STUDENT_ENSEMW2S), *_recovered(results), _labels(results), _choice(results)]
        ).strip(),
    ]
    contests = [_contest(results, name) for name in systems_of(results) if name in TABLE and TABLE[name].rivals]
    return Summary(
        reached=[paragraph for paragraph in reached if paragraph]
        or ["This run evaluated neither the ensemble nor its student."],
        contests=contests,
        caveats=_caveats(results),
        warnings=list(results.warnings),
    )


def _accuracy(results: RunResults, system: str) -> str:
    parts: list[str] = []
    for split, name in SPLITS.items():
        found = results.metrics(system, split)
        if number(found.exact_match) is None:
            continue
        n = "" if found.n is None else f", n = {found.n}"
        questions = "ones" if parts else "test questions exactly"
        around = percent_range(found.ci95)
        parts.append(f"{percent(found.exact_match)} of the {name} {questions} (95 % interval {around}{n})")
    return f"{_capital(in_a_sentence(system))} answers {listed(parts)}." if parts else ""


def _recovered(results: RunResults) -> list[str]:
    sentences = []
    for split, name in SPLITS.items():
        found = results.recovered(STUDENT_ENSEMW2S, split)
        if found is None:
            continue
        gain, gap = found.student_minus_weak, found.ceiling_minus_weak
        plainly = (
            f"in plain points {points(gain.difference)} ({points_range(gain.ci95)}) over one expert, "
            f"where true labels give {points(gap.difference)} ({points_range(gap.ci95)})"
        )
        value = number(found.value)
        if value is None:
            reason = found.reason or "it was not computed"
            sentences.append(f"On {name} the recovered performance gap (PGR) is undefined: {reason}; {plainly}.")
        else:
            sentences.append(f"On {name} the recovered performance gap (PGR) is {plain(value)}; {plainly}.")
    return sentences


def _cost(results: RunResults) -> str:
    ours, single = results.cost(ENSEMW2S), results.cost(EXPERT_SINGLE)
    if ours is None or single is None:
        return ""
    parts = []
    for mine, theirs, verb in (
        (ours.tokens_trained, single.tokens_trained, "trained on"),
        (ours.tokens_decoded, single.tokens_decoded, "decoded"),
    ):
        if mine and theirs:
            parts.append(f"{plain(mine / theirs, 1)} times the tokens {verb} ({amount(mine)} against {amount(theirs)})")
    return f"Its price, against one expert: {listed(parts)}." if parts else ""


def _rounds(results: RunResults) -> str:
    sentences = [*_refused(results.rounds)]
    curves = results.curves
    known = [(value, -i) for i, v in enumerate(curves.validation) if (value := number(v)) is not None]
    if len(known) > 1:
        best, where = max(known)
        at = curves.rounds[-where] if -where < len(curves.rounds) else 1 - where
        sentences.append(
            f"On validation the first round alone answers {percent(known[0][0])}, all {len(curves.validation)} "
            f"together {percent(known[-1][0])}; the most is {percent(best)}, with {at} round{'s' if at != 1 else ''}."
        )
    return " ".join(sentences)


def _refused(rounds: Sequence[RoundRecord]) -> Iterator[str]:
    refused = [str(record.round) for record in rounds if not record.accepted]
    if refused:
        has = "Round" if len(refused) == 1 else "Rounds"
        yield f"{has} {listed(refused)} of {len(rounds)} had an alpha that is not positive and got no vote."


def _labels(results: RunResults) -> str:
    made = results.labels.get(ENSEMW2S)
    if made is None or made.n is None or number(made.accuracy) is None:
        return ""
    text = f"Of the ensemble’s {made.n} pseudo-labels {percent(made.accuracy)} are right"
    bins = [(b, right) for b in made.agreement_bins if b.n and (right := number(b.accuracy)) is not None]
    if len(bins) < 2:
        return f"{text}."
    *others, (top, right) = bins
    rest = sum(b.n * share for b, share in others) / sum(b.n for b, _ in others)
    return (
        f"{text}; where the experts’ agreement is {plain(top.lo, 1)} or more (n = {top.n}) it is "
        f"{percent(right)}, elsewhere {percent(rest)}."
    )


def _choice(results: RunResults) -> str:
    """How many labels the student learned, where it did not learn all."""
    choice = (results.choices or {}).get(STUDENT_ENSEMW2S)
    if choice is None or choice.labels == "all":
        return ""
    if choice.easy_only:
        return (
            f"The ensemble and {in_a_sentence(STUDENT_EASY_ONLY)} give the same answer to only "
            f"{percent(choice.agreed)} of the prompts, so the student of the ensemble’s labels is that student, with "
            "the same weights (student.labels auto)."
        )
    right = f", of which {percent(choice.accuracy)} are right" if number(choice.accuracy) is not None else ""
    whose = "its own answers" if choice.labels == "own" else "labels"
    learned = f"The student learned {choice.kept} {whose} (student.labels {choice.labels}){right}"
    if choice.agreed is None:
        return f"{learned}."
    weighed = (
        f"; a label on which they differ counts {plain(choice.weight)}"
        if choice.labels == "auto" and choice.weight
        else ""
    )
    return (
        f"{learned}. The ensemble and {in_a_sentence(STUDENT_EASY_ONLY)} give the same answer to "
        f"{percent(choice.agreed)} of the prompts{weighed}."
    )


def _contest(results: RunResults, system: str) -> Contest:
    who = _capital(in_a_sentence(system))
    wins, not_wins, tally = [], [], Counter[str]()
    untested = []
    for rival in TABLE[system].rivals:
        bouts = [bout for split in SPLITS if (bout := compared(results, system, rival, split)) is not None]
        for bout in bouts:
            tally[bout.verdict] += 1
        if not bouts and (rival in results.systems or TABLE[rival].standard):
            untested.append(in_a_sentence(rival))
        won = [_bout(b) for b in bouts if b.verdict == "better"]
        lost = [f"{b.verdict} on {_bout(b)}" for b in bouts if b.verdict != "better"]
        if won:
            wins.append(f"It wins against {in_a_sentence(rival)} on {listed(won)}.")
        if lost:
            not_wins.append(f"It does not win against {in_a_sentence(rival)}: {listed(lost)}.")
    return Contest(
        who,
        _record(who, tally, swept=not not_wins),
        wins,
        not_wins,
        f"Not compared with {listed(untested)}." if untested else "",
    )


def _record(who: str, tally: Counter[str], *, swept: bool) -> str:
    """How many comparisons a system wins, in a sentence."""
    total = sum(tally.values())
    if not total:
        return f"{who} was not compared with its rivals on the same examples, so nothing is claimed for it."
    if swept:
        return f"{who} wins {'the one comparison' if total == 1 else f'all {total} comparisons'} made."
    undecided = [f"{n} {'is' if n == 1 else 'are'} {kind}" for kind in UNDECIDED if (n := tally[kind])]
    return (
        f"Of {total} comparison{'s' if total != 1 else ''}, {who[0].lower()}{who[1:]} wins {tally['better']}, "
        f"is no different in {tally['no difference']} and loses {tally['worse']}"
        + (f"; {listed(undecided)}." if undecided else ".")
    )


def _bout(bout: Bout) -> str:
    return f"{SPLITS[bout.split]} ({points(bout.difference)} points, {points_range(bout.ci95)})"


def _caveats(results: RunResults) -> list[str]:
    caveats = [
        "Intervals are 95 % bootstrap intervals over the test examples. They say nothing of what another training seed "
        f"would give: this is one run, with seed {'unknown' if results.seed is None else results.seed}."
    ]
    caveats += _below_the_ensemble(results)
    if results.dropped is not None:
        caveats.append(" ".join(results.dropped.sentences()))
    made = len(results.comparisons)
    if made > 5:
        caveats.append(
            f"Of {made} comparisons at 95 %, about {plain(made * 0.05, 1)} would look decided by chance if no two "
            "systems differed."
        )
    return caveats


def _below_the_ensemble(results: RunResults) -> list[str]:
    """Why true labels need not be the most that there is, where they are not."""
    below = []
    for split, name in SPLITS.items():
        ceiling, ours = (number(results.metrics(who, split).exact_match) for who in (STUDENT_CEILING, ENSEMW2S))
        if ceiling is not None and ours is not None and ceiling < ours:
            below.append(f"on {name} ({percent(ceiling)} against {percent(ours)})")
    if not below:
        return []
    return [
        f"The student of true labels is below the weak ensemble {listed(below)}. That can be: true labels are the most "
        "that this student can learn from in its training, but it is one model and answers alone, while the ensemble "
        "averages many models, each trained on easy examples by itself. It bounds other students, not the ensemble."
    ]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
