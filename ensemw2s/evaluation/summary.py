"""results.json in, plain sentences out: what was reached, and against whom the ensemble and its student do not win.

Apart from the report because these sentences are claims: each follows from a figure by a rule that a test can hold, and
the terminal prints the same ones as the page.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ensemw2s.evaluation.wording import (
    SPLITS,
    amount,
    compared,
    figure,
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

EXPECTED_RIVALS = ("expert_single", "expert_compute_matched", "bagging", "sequence_vote")
RIVALS = {
    "ensemw2s": (*EXPECTED_RIVALS, "base_zero_shot"),
    "student_ensemw2s": ("student_single", "student_bagging", "student_easy_only", "ensemw2s"),
    "student_generations": ("student_ensemw2s",),
}


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
    """The opening of a report: paragraphs on what was reached, the contests, and sentences of caution."""

    reached: list[str]
    contests: list[Contest]
    caveats: list[str]


def summarise(results: dict[str, Any]) -> Summary:
    """Says in sentences what the numbers of a run say.

    Args:
        results: Contents of results.json; systems may be missing and values null.

    Returns:
        Sentences in the order in which they should be read.
    """
    reached = [
        f"{_accuracy(results, 'ensemw2s')} {_cost(results)} {_rounds(results)}".strip(),
        " ".join([_accuracy(results, "student_ensemw2s"), *_recovered(results), _labels(results)]).strip(),
    ]
    contests = [contest for system in RIVALS if (contest := _contest(results, system)) is not None]
    return Summary(
        reached=[paragraph for paragraph in reached if paragraph]
        or ["This run evaluated neither the ensemble nor its student."],
        contests=contests,
        caveats=_caveats(results),
    )


def _accuracy(results: dict[str, Any], system: str) -> str:
    parts: list[str] = []
    for split, name in SPLITS.items():
        value = figure(results, system, split, "exact_match")
        if number(value) is None:
            continue
        around = percent_range(figure(results, system, split, "ci95"))
        n = number(figure(results, system, split, "n"))
        count = "" if n is None else f", n = {n:.0f}"
        questions = "ones" if parts else "test questions exactly"
        parts.append(f"{percent(value)} of the {name} {questions} (95 % interval {around}{count})")
    return f"{_capital(in_a_sentence(system))} answers {listed(parts)}." if parts else ""


def _recovered(results: dict[str, Any]) -> list[str]:
    entry = (results.get("pgr") or {}).get("student_ensemw2s") or {}
    sentences = []
    for split, name in SPLITS.items():
        found = entry.get(split)
        if not found:
            continue
        gain, gap = found.get("student_minus_weak") or {}, found.get("ceiling_minus_weak") or {}
        plainly = (
            f"in plain points {points(gain.get('difference'))} ({points_range(gain.get('ci95'))}) over one expert, "
            f"where true labels give {points(gap.get('difference'))} ({points_range(gap.get('ci95'))})"
        )
        value = number(found.get("value"))
        if value is None:
            reason = found.get("reason") or "it was not computed"
            sentences.append(f"On {name} the recovered performance gap (PGR) is undefined: {reason}; {plainly}.")
        else:
            sentences.append(f"On {name} the recovered performance gap (PGR) is {plain(value)}; {plainly}.")
    return sentences


def _cost(results: dict[str, Any]) -> str:
    systems = results.get("systems") or {}
    ours, single = ((systems.get(name) or {}).get("cost") or {} for name in ("ensemw2s", "expert_single"))
    parts = []
    for key, verb in (("tokens_trained", "trained on"), ("tokens_decoded", "decoded")):
        mine, theirs = number(ours.get(key)), number(single.get(key))
        if mine and theirs:
            parts.append(f"{plain(mine / theirs, 1)} times the tokens {verb} ({amount(mine)} against {amount(theirs)})")
    return f"Its price, against one expert: {listed(parts)}." if parts else ""


def _rounds(results: dict[str, Any]) -> str:
    rounds = results.get("rounds") or []
    refused = [str(r.get("round")) for r in rounds if not r.get("accepted", True)]
    curves = results.get("curves") or {}
    validation = [number(v) for v in curves.get("validation") or []]
    sentences = []
    if refused:
        has = "Round" if len(refused) == 1 else "Rounds"
        sentences.append(f"{has} {listed(refused)} of {len(rounds)} had an alpha that is not positive and got no vote.")
    known = [(v, -i) for i, v in enumerate(validation) if v is not None]
    if len(known) > 1:
        best, where = max(known)
        labels = curves.get("rounds") or []
        at = labels[-where] if -where < len(labels) else 1 - where
        sentences.append(
            f"On validation the first round alone answers {percent(known[0][0])}, all {len(validation)} together "
            f"{percent(known[-1][0])}; the most is {percent(best)}, with {at} round{'s' if at != 1 else ''}."
        )
    return " ".join(sentences)


def _labels(results: dict[str, Any]) -> str:
    made = (results.get("labels") or {}).get("ensemw2s") or {}
    accuracy, n = number(made.get("accuracy")), number(made.get("n"))
    if accuracy is None or n is None:
        return ""
    text = f"Of the ensemble’s {n:.0f} pseudo-labels {percent(accuracy)} are right"
    bins = [b for b in made.get("agreement_bins") or [] if b.get("n") and number(b.get("accuracy")) is not None]
    if len(bins) < 2:
        return f"{text}."
    *others, top = bins
    rest = sum(b["n"] * b["accuracy"] for b in others) / sum(b["n"] for b in others)
    return (
        f"{text}; where the experts’ agreement is {plain(top['lo'], 1)} or more (n = {top['n']}) it is "
        f"{percent(top['accuracy'])}, elsewhere {percent(rest)}."
    )


def _contest(results: dict[str, Any], system: str) -> Contest | None:
    present = systems_of(results)
    if system not in present:
        return None
    who = _capital(in_a_sentence(system))
    wins, not_wins, tally = [], [], {"better": 0, "no difference": 0, "worse": 0}
    untested = []
    for rival in RIVALS[system]:
        bouts = [bout for split in SPLITS if (bout := compared(results, system, rival, split)) is not None]
        for bout in bouts:
            tally[bout["verdict"]] += 1
        if not bouts and (rival in present or rival in EXPECTED_RIVALS):
            untested.append(in_a_sentence(rival))
        won = [_bout(b) for b in bouts if b["verdict"] == "better"]
        lost = [f"{b['verdict']} on {_bout(b)}" for b in bouts if b["verdict"] != "better"]
        if won:
            wins.append(f"It wins against {in_a_sentence(rival)} on {listed(won)}.")
        if lost:
            not_wins.append(f"It does not win against {in_a_sentence(rival)}: {listed(lost)}.")
    total = sum(tally.values())
    if not total:
        record = f"{who} was not compared with its rivals on the same examples, so nothing is claimed for it."
    elif not not_wins:
        record = f"{who} wins {'the one comparison' if total == 1 else f'all {total} comparisons'} made."
    else:
        record = (
            f"Of {total} comparison{'s' if total != 1 else ''}, {who[0].lower()}{who[1:]} wins {tally['better']}, "
            f"is no different in {tally['no difference']} and loses {tally['worse']}."
        )
    return Contest(who, record, wins, not_wins, f"Not compared with {listed(untested)}." if untested else "")


def _bout(bout: dict[str, Any]) -> str:
    return f"{SPLITS[bout['split']]} ({points(bout['difference'])} points, {points_range(bout['ci95'])})"


def _caveats(results: dict[str, Any]) -> list[str]:
    caveats = [
        "Intervals are 95 % bootstrap intervals over the test examples. They say nothing of what another training seed "
        f"would give: this is one run, with seed {results.get('seed', 'unknown')}."
    ]
    made = len(results.get("comparisons") or [])
    if made > 5:
        caveats.append(
            f"Of {made} comparisons at 95 %, about {plain(made * 0.05, 1)} would look decided by chance if no two "
            "systems differed."
        )
    return caveats


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
