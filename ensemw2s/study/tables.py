"""A study's statistics in, its tables as text out: the same for the terminal, the page and docs/results.md.

One place for what is shown and how figures read, so that no two of the three can say different things.
"""

from __future__ import annotations

from collections.abc import Iterator

from ensemw2s.config.study import DEFAULT
from ensemw2s.config.systems import ENSEMW2S, TABLE
from ensemw2s.evaluation.page import PAPER
from ensemw2s.evaluation.records import VALIDATION
from ensemw2s.evaluation.wording import (
    NOTHING,
    SPLITS,
    amount,
    percent,
    plain,
    points,
    seconds,
)
from ensemw2s.study.records import StudyFigures
from ensemw2s.study.rows import CHOSEN
from ensemw2s.study.sheet import (
    CHOICES,
    Sheet,
    difference,
    find,
    lower_first,
    mean_text,
    name_of,
    ordered,
    p_value,
    scope_name,
    scopes,
    seeds_of,
    without_empty,
)
from ensemw2s.study.tables_diagnosis import associations, together
from ensemw2s.study.tables_variants import others, pairs, rivals, variants


def sheets(summary: StudyFigures) -> Iterator[Sheet]:
    """All tables of a study that have something to show, the most general first."""
    for sheet in _sheets(summary):
        shown = without_empty(sheet)
        if shown.rows and len(shown.headings) > 1:
            yield shown


def _sheets(summary: StudyFigures) -> Iterator[Sheet]:
    places = scopes(summary)
    yield comparisons(summary, places[0])
    yield systems(summary, places[0])
    yield paper(summary, places[0])
    if summary.variants:
        yield variants(summary)
        yield rivals(summary)
    if summary.pairs:
        yield pairs(summary)
    if summary.other_data:
        yield others(summary)
    yield recovered(summary, places[0])
    yield costs(summary, places[0])
    yield curves(summary)
    yield chosen(summary)
    if summary.diagnosis.points:
        yield together(summary)
        yield associations(summary)
    for place in places[1:]:
        yield comparisons(summary, place)
        yield systems(summary, place)


CLAIMS = tuple(
    (name, rival)
    for system in TABLE.values()
    for name in ((ENSEMW2S, CHOSEN) if system.name == ENSEMW2S else (system.name,))
    for rival in reversed(system.claims_over)
)
"""What must hold if the method is to be worth its price: system and rival."""


def verdicts(summary: StudyFigures) -> dict[str, list[str]]:
    """What held and what did not, in sentences, over all tasks of the default variant.

    Returns:
        Three headings, each with its sentences: a claim held where the 95 % interval of the difference is above 0.
    """
    headings = {"better": "What held", "worse": "What turned out the other way", "no difference": "What did not hold"}
    found: dict[str, list[str]] = {heading: [] for heading in (*headings.values(), "What cannot be told")}
    scope = scopes(summary)[0]
    for a, b in CLAIMS:
        for split, title in SPLITS.items():
            entry = find(summary.comparisons, task=scope, variant=DEFAULT, a=a, b=b, split=split)
            if entry is None:
                continue
            how = f"{title}, teacher-forced" if a == CHOSEN else title
            text = f"{name_of(a)} minus {lower_first(name_of(b))} on {how}: {difference(entry)} points"
            text += f", p = {p_value(entry)}." if entry.pairs > 1 else ", one seed."
            found[headings.get(entry.verdict, "What cannot be told")].append(text)
    return found


def comparisons(summary: StudyFigures, scope: str) -> Sheet:
    """Differences of exact match in points, paired by task and seed."""
    own = [e for e in summary.comparisons if e.task == scope and e.variant == DEFAULT]
    pairs = dict.fromkeys((e.a, e.b) for e in own)
    rows = []
    for a, b in pairs:
        row = [f"{name_of(a)} − {name_of(b)}"]
        for split in SPLITS:
            entry = find(own, a=a, b=b, split=split)
            row += [difference(entry), p_value(entry)]
        rows.append(tuple(row))
    sizes = sorted({e.pairs for e in own})
    least = max((e.smallest_p for e in own), default=1.0)
    note = (
        f"Exact match, points; 95 % t intervals over {seeds_of(own)}. p: two-sided sign-flip test over "
        f"{', '.join(map(str, sizes))} pairs of one task and seed, which cannot be less than {least:.2g}. "
        f"{sum(e.pairs > 1 for e in own)} tests, none corrected for their number. "
        "With T by validation, both are teacher-forced: ensembles of the first rounds do not decode."
    )
    return Sheet("comparisons", f"Differences: {scope_name(scope)}", ("", "ID", "p", "OOD", "p"), tuple(rows), note)


def systems(summary: StudyFigures, scope: str) -> Sheet:
    """Exact match of every system, mean over seeds with its interval."""
    own = [e for e in summary.systems if e.task == scope and e.variant == DEFAULT]
    splits = {key: title for key, title in {**CHOICES, **SPLITS}.items() if any(e.split == key for e in own)}
    rows = []
    for system in ordered(e.system for e in own):
        row = [name_of(system)]
        for split in splits:
            row.append(mean_text(find(own, system=system, split=split)))
        ood = find(own, system=system, split="ood")
        beside = (NOTHING,) * 4
        if ood is not None:
            options, labels = percent(ood.option_accuracy, ""), percent(ood.label_accuracy, "")
            beside = (percent(ood.token_accuracy, ""), plain(ood.nll, 3), options, labels)
        rows.append((*row, *beside))
    headings = ("", *splits.values(), "OOD tokens", "OOD NLL", "OOD options", "labels right")
    note = (
        f"Exact match, %, mean over {seeds_of(own)} with 95 % t interval; on validation, and with T by "
        "validation, under teacher forcing. So are tokens right (%) and NLL (nats per token) of the OOD answers."
    )
    if any(e.label_accuracy is not None for e in own):
        note += " Labels right, %, are those that a student learnt from."
    return Sheet("systems", f"Systems: {scope_name(scope)}", headings, tuple(rows), note)


def paper(summary: StudyFigures, scope: str) -> Sheet:
    """The study's gains beside those that the paper reports."""
    rows = []
    for title, paper_id, paper_ood, a, b in PAPER:
        found = [
            difference(find(summary.comparisons, task=scope, variant=DEFAULT, a=a, b=b, split=split))
            for split in SPLITS
        ]
        rows.append((title, paper_id, found[0], paper_ood, found[1]))
    headings = ("Points", "ID, paper", "ID, here", "OOD, paper", "OOD, here")
    note = (
        "The paper's figures (arXiv 2410.04571, 2505.21959) are of other data and models, without a spread over runs."
    )
    return Sheet("paper", "Beside the paper", headings, tuple(rows), note)


def recovered(summary: StudyFigures, scope: str) -> Sheet:
    """PGR with the plain differences."""
    rows = []
    for entry in summary.pgr:
        if entry.task != scope or entry.variant != DEFAULT:
            continue
        rows.append(
            (
                name_of(entry.system),
                SPLITS[entry.split],
                plain(entry.median),
                " to ".join(map(plain, entry.range)) if entry.range else NOTHING,
                f"{entry.undefined} of {entry.runs}",
                difference(entry.student_minus_weak),
                difference(entry.ceiling_minus_weak),
            )
        )
    headings = ("", "split", "PGR, median", "range", "undefined", "student − one expert", "ceiling − one expert")
    note = (
        "PGR over the runs where the ceiling is above the weak expert; a ratio of two small differences explodes, so "
        "read the plain differences (points, over all runs) first."
    )
    return Sheet("pgr", f"Performance gap recovered: {scope_name(scope)}", headings, tuple(rows), note)


def costs(summary: StudyFigures, scope: str) -> Sheet:
    """What a run of each system costs, and what that buys."""
    rows = [
        (
            name_of(e.system),
            amount(e.tokens_trained),
            amount(e.supervision_trained),
            amount(e.tokens_labelled),
            amount(e.tokens_decoded),
            seconds((e.train_seconds or 0) + (e.decode_seconds or 0)),
            points(e.gain_id),
            points(e.gain_ood),
            points(e.id_per_million_trained),
            points(e.ood_per_million_trained),
            points(e.ood_per_million_decoded),
        )
        for e in summary.costs
        if e.task == scope and e.variant == DEFAULT
    ]
    headings = (
        "", "tokens trained", "by its supervisors", "decoded as labels", "decoded in the tests", "time",
        "ID gain", "OOD gain", "ID a M trained", "OOD a M trained", "OOD a M decoded",
    )  # fmt: skip
    note = (
        "Mean of a run. Gains are points of exact match over the weak bases as they are; a million trained tokens "
        "counts those of the supervisors, too, and a million decoded ones both tests. Pre-training is not counted; "
        "time is of training and of decoding the tests, a student's without its supervisors'."
    )
    return Sheet("costs", f"Cost: {scope_name(scope)}", headings, tuple(rows), note)


def curves(summary: StudyFigures) -> Sheet:
    """The ensemble's exact match with the first round, the first two, and so on."""
    own = [curve for curve in summary.curves if curve.variant == DEFAULT]
    most = max((curve.rounds[-1] for curve in own), default=0)
    rows = []
    for curve in own:
        for split, title in {VALIDATION: CHOICES[VALIDATION], **SPLITS}.items():
            by_round = dict(zip(curve.rounds, curve.on(split), strict=True))
            values = (by_round.get(number) for number in range(1, most + 1))
            rows.append((curve.task, title, *(percent(value, "") for value in values)))
    headings = ("Task", "", *(f"T = {number}" for number in range(1, most + 1)))
    note = (
        "Exact match of the ensemble of the first T rounds, %, under teacher forcing, mean over the seeds that have it."
    )
    return Sheet("curves", "Learning curves over rounds", headings, tuple(rows), note)


def chosen(summary: StudyFigures) -> Sheet:
    """How many rounds validation chose."""
    rows = tuple((e.task, e.variant, ", ".join(map(str, e.rounds))) for e in summary.chosen)
    note = "The smallest T with the best exact match on easy validation; test examples have no say in it."
    return Sheet("chosen", "Rounds that validation chose", ("Task", "variant", "T, a seed each"), rows, note)
