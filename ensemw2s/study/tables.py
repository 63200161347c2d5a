"""A study's statistics in, its tables as text out: the same for the terminal, the page and docs/results.md.

One place for what is shown and how figures read, so that no two of the three can say different things.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ensemw2s.config_study import DEFAULT
from ensemw2s.evaluation.page import PAPER
from ensemw2s.evaluation.wording import (
    LABELS,
    NOTHING,
    SPLITS,
    amount,
    label,
    percent,
    percent_range,
    plain,
    points,
    points_range,
    seconds,
)
from ensemw2s.study.rows import CHOSEN, HARD_VALIDATION, VALIDATION
from ensemw2s.study.summary import ALL

Facts = dict[str, Any]

CHOICES = {VALIDATION: "validation", HARD_VALIDATION: "hard validation"}

FIGURES = {
    "error_correlation": "correlation of errors",
    "same_wrong": "same wrong token, where two are wrong",
    "all_same_wrong": "all agree on a wrong token",
    "all_same_wrong_answer": "all agree on a wrong answer (ensemble alone)",
}


@dataclass(frozen=True)
class Sheet:
    """A table.

    Attributes:
        key: What it is about; sheets of one key follow each other.
        title: Heading.
        headings: Of the columns; the first one names the rows.
        rows: Text.
        note: What to know when reading it.
    """

    key: str
    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def name_of(system: str) -> str:
    """Name of a system in a table."""
    return "EnsemW2S, T by validation" if system == CHOSEN else label(system)


def scopes(summary: Facts) -> list[str]:
    """`all` where there are several tasks, then the tasks."""
    return list(dict.fromkeys(entry["task"] for entry in summary["systems"]))


def scope_name(scope: str) -> str:
    """Name of a task, or of all."""
    return "All tasks" if scope == ALL else scope


def sheets(summary: Facts) -> Iterator[Sheet]:
    """All tables of a study, the most general first."""
    places = scopes(summary)
    for place in places[:1]:
        yield comparisons(summary, place)
        yield systems(summary, place)
    yield paper(summary, places[0])
    if summary["variants"]:
        yield variants(summary)
    if summary["other_data"]:
        yield others(summary)
    yield recovered(summary, places[0])
    yield costs(summary, places[0])
    yield chosen(summary)
    if summary["diagnosis"]["points"]:
        yield together(summary)
        yield associations(summary)
    for place in places[1:]:
        yield comparisons(summary, place)
        yield systems(summary, place)


def find(entries: list[Facts], **wanted: Any) -> Facts | None:
    """The first entry with these values."""
    return next((e for e in entries if all(e.get(k) == v for k, v in wanted.items())), None)


CLAIMS = (
    *(("ensemw2s", rival) for rival in ("bagging", "expert_compute_matched", "expert_single")),
    *((CHOSEN, rival) for rival in ("bagging", "expert_compute_matched", "expert_single")),
    *(("student_ensemw2s", rival) for rival in ("student_bagging", "student_single")),
)
"""What the method would have to hold: system and rival."""


def verdicts(summary: Facts) -> dict[str, list[str]]:
    """What held and what did not, in sentences, over all tasks of the default variant.

    Returns:
        Three headings, each with its sentences: a claim held where the 95 % interval of the difference is above 0.
    """
    headings = {"better": "What held", "worse": "What turned out the other way", "no difference": "What did not hold"}
    found: dict[str, list[str]] = {heading: [] for heading in (*headings.values(), "What cannot be told")}
    scope = scopes(summary)[0]
    for a, b in CLAIMS:
        for split, title in SPLITS.items():
            entry = find(summary["comparisons"], task=scope, variant=DEFAULT, a=a, b=b, split=split)
            if entry is None:
                continue
            how = f"{title}, teacher-forced" if a == CHOSEN else title
            text = f"{name_of(a)} minus {name_of(b)[0].lower()}{name_of(b)[1:]} on {how}: {_difference(entry)} points"
            text += f", p = {_p(entry)}." if entry["pairs"] > 1 else ", one seed."
            found[headings.get(entry["verdict"], "What cannot be told")].append(text)
    return found


def comparisons(summary: Facts, scope: str, variant: str = DEFAULT) -> Sheet:
    """Differences of exact match in points, paired by task and seed."""
    own = [e for e in summary["comparisons"] if e["task"] == scope and e["variant"] == variant]
    pairs = dict.fromkeys((e["a"], e["b"]) for e in own)
    rows = []
    for a, b in pairs:
        row = [f"{name_of(a)} − {name_of(b)}"]
        for split in SPLITS:
            entry = find(own, a=a, b=b, split=split)
            row += [_difference(entry), _p(entry)]
        rows.append(tuple(row))
    sizes = sorted({e["pairs"] for e in own})
    least = max((e["smallest_p"] for e in own), default=1.0)
    note = (
        f"Exact match, points; 95 % t intervals over {_count(own)} seeds. p: two-sided sign-flip test over "
        f"{', '.join(map(str, sizes))} pairs of one task and seed, which cannot be less than {least:.2g}. "
        f"{sum(e['n'] > 1 for e in own)} tests, none corrected for their number. "
        "With T by validation, both are teacher-forced: ensembles of the first rounds do not decode."
    )
    return Sheet("comparisons", f"Differences: {scope_name(scope)}", ("", "ID", "p", "OOD", "p"), tuple(rows), note)


def _count(entries: list[Facts]) -> str:
    return ", ".join(map(str, sorted({e["n"] for e in entries}))) or "0"


def _difference(entry: Facts | None) -> str:
    if entry is None:
        return NOTHING
    if entry["ci95"] is None:
        return points(entry["mean"])
    return f"{points(entry['mean'])} ({points_range(entry['ci95'])})"


def _p(entry: Facts | None) -> str:
    return (
        NOTHING
        if entry is None or entry["pairs"] < 2
        else f"{entry['p']:.2g}"
        if entry["p"] < 0.1
        else f"{entry['p']:.2f}"
    )


def systems(summary: Facts, scope: str, variant: str = DEFAULT) -> Sheet:
    """Exact match of every system, mean over seeds with its interval."""
    own = [e for e in summary["systems"] if e["task"] == scope and e["variant"] == variant]
    splits = {key: title for key, title in {**CHOICES, **SPLITS}.items() if any(e["split"] == key for e in own)}
    rows = []
    for system in ordered(e["system"] for e in own):
        row = [name_of(system)]
        for split in splits:
            row.append(_mean(find(own, system=system, split=split)))
        ood = find(own, system=system, split="ood") or {}
        rows.append((*row, percent(ood.get("token_accuracy"), ""), plain(ood.get("nll"), 3)))
    headings = ("", *splits.values(), "OOD tokens", "OOD NLL")
    note = (
        f"Exact match, %, mean over {_count(own)} seeds with 95 % t interval; on validation, and with T by "
        "validation, under teacher forcing. So are tokens right (%) and NLL (nats a token) of the OOD answers."
    )
    return Sheet("systems", f"Systems: {scope_name(scope)}", headings, tuple(rows), note)


def ordered(names: Any) -> list[str]:
    """Systems in the order in which reports show them, the ensemble of chosen rounds after that of all."""
    known = list(LABELS)
    known.insert(known.index("ensemw2s") + 1, CHOSEN)
    present = set(names)
    return [name for name in known if name in present]


def _mean(entry: Facts | None) -> str:
    if entry is None:
        return NOTHING
    return percent(entry["mean"], "") + (f" ({percent_range(entry['ci95'])})" if entry["ci95"] else "")


def paper(summary: Facts, scope: str) -> Sheet:
    """The study's gains beside those that the paper reports."""
    rows = []
    for title, paper_id, paper_ood, a, b in PAPER:
        found = [
            _difference(find(summary["comparisons"], task=scope, variant=DEFAULT, a=a, b=b, split=split))
            for split in SPLITS
        ]
        rows.append((title, paper_id, found[0], paper_ood, found[1]))
    headings = ("Points", "ID, paper", "ID, here", "OOD, paper", "OOD, here")
    note = (
        "The paper's figures (arXiv 2410.04571, 2505.21959) are of other data and models, without a spread over runs."
    )
    return Sheet("paper", "Beside the paper", headings, tuple(rows), note)


def variants(summary: Facts) -> Sheet:
    """Every variant minus the default, the best on validation first."""
    columns = {f"ensemw2s/{split}": title for split, title in {**CHOICES, **SPLITS}.items()}
    columns |= {
        f"student_ensemw2s/{split}": f"student, {title}"
        for split, title in {HARD_VALIDATION: CHOICES[HARD_VALIDATION], "ood": SPLITS["ood"]}.items()
    }
    columns = {key: title for key, title in columns.items() if any(e.get(key) for e in summary["variants"])}
    rows = [
        (e["variant"], *(text for key in columns for text in (_difference(e.get(key)), _p(e.get(key)))))
        for e in summary["variants"]
    ]
    headings = ("Variant − default", *(text for title in columns.values() for text in (title, "p")))
    note = (
        "Exact match of the ensemble (and of its student), points, paired by task and seed; on validation under "
        "teacher forcing. Choose by validation only: the ensemble by the easy one, the student by the hard one."
        + _by_validation(summary)
    )
    return Sheet("variants", "Variants", headings, tuple(rows), note)


def _by_validation(summary: Facts) -> str:
    """The variants that validation speaks for, and those that it speaks against, in sentences."""
    text = ""
    for system, split in (("ensemw2s", VALIDATION), ("student_ensemw2s", HARD_VALIDATION)):
        found = {e["variant"]: e[f"{system}/{split}"] for e in summary["variants"] if e.get(f"{system}/{split}")}
        if not found:
            continue
        name, best = max(found.items(), key=lambda item: item[1]["mean"])
        said = f"{name} does best, {_difference(best)}, p = {_p(best)}"
        text += f" {name_of(system)}, {CHOICES[split]}: {said if best['mean'] > 0 else 'none beats the default'}"
        for verdict, where in (("better", "above"), ("worse", "below")):
            names = [variant for variant, entry in found.items() if entry["verdict"] == verdict]
            text += f"; the interval is {where} 0 for {', '.join(names) or 'none'}"
        text += "."
    return text


def others(summary: Facts) -> Sheet:
    """Variants with other examples than the default's: what they give, and the ensemble against their other systems."""
    scope, rows = scopes(summary)[0], []
    for found in summary["other_data"]:
        whole = {scope, *found["tasks"]} >= set(scopes(summary))
        name = found["variant"] if whole else f"{found['variant']} ({', '.join(found['tasks'])})"
        own, pairs = (
            [e for e in summary[part] if (e["task"], e["variant"]) == (scope, found["variant"])]
            for part in ("systems", "comparisons")
        )
        for system in ordered(e["system"] for e in own):
            a = "student_ensemw2s" if system.startswith("student_") else "ensemw2s"
            row = [name, name_of(system), *(_mean(find(own, system=system, split=s)) for s in (VALIDATION, *SPLITS))]
            for split in SPLITS:
                entry = find(pairs, a=a, b=system, split=split)
                row += [_difference(entry), _p(entry)]
            rows.append(tuple(row))
    headings = ("Variant", "", "validation", "ID", "OOD", "gain, ID", "p", "gain, OOD", "p")
    note = (
        "These change the data, so their validation and test examples are not the default's: hold nothing here against "
        "the default, or against another of them. Exact match, %, mean over seeds with 95 % t interval; gain: the "
        "ensemble (or its student) minus this system, points."
    )
    return Sheet("others", "Variants with examples of their own", headings, tuple(rows), note)


def recovered(summary: Facts, scope: str, variant: str = DEFAULT) -> Sheet:
    """PGR with the plain differences."""
    rows = []
    for entry in summary["pgr"]:
        if entry["task"] != scope or entry["variant"] != variant:
            continue
        rows.append(
            (
                name_of(entry["system"]),
                SPLITS[entry["split"]],
                plain(entry["median"]),
                " to ".join(map(plain, entry["range"])) if entry["range"] else NOTHING,
                f"{entry['undefined']} of {entry['runs']}",
                _difference(entry["student_minus_weak"]),
                _difference(entry["ceiling_minus_weak"]),
            )
        )
    headings = ("", "split", "PGR, median", "range", "undefined", "student − one expert", "ceiling − one expert")
    note = (
        "PGR over the runs where the ceiling is above the weak expert; a ratio of two small differences explodes, so "
        "read the plain differences (points, over all runs) first."
    )
    return Sheet("pgr", f"Performance gap recovered: {scope_name(scope)}", headings, tuple(rows), note)


def costs(summary: Facts, scope: str, variant: str = DEFAULT) -> Sheet:
    """What a run of each system costs, and what that buys."""
    rows = [
        (
            name_of(e["system"]),
            amount(e["tokens_trained"]),
            amount(e["supervision_trained"]),
            amount(e["tokens_labelled"]),
            amount(e["tokens_decoded"]),
            seconds((e["train_seconds"] or 0) + (e["decode_seconds"] or 0)),
            points(e["gain_id"]),
            points(e["gain_ood"]),
            _bought(e["id_per_million_trained"]),
            _bought(e["ood_per_million_trained"]),
            _bought(e["ood_per_million_decoded"]),
        )
        for e in summary["costs"]
        if e["task"] == scope and e["variant"] == variant
    ]
    headings = (
        "", "tokens trained", "by its supervisors", "decoded as labels", "decoded in the tests", "time",
        "ID gain", "OOD gain", "ID a M trained", "OOD a M trained", "OOD a M decoded",
    )  # fmt: skip
    note = (
        "Mean of a run. Gains are points of exact match over the weak bases as they are; a million trained tokens "
        "counts those of the supervisors, too. Pre-training is not counted; time is of training and decoding."
    )
    return Sheet("costs", f"Cost: {scope_name(scope)}", headings, tuple(rows), note)


def _bought(value: float | None) -> str:
    return NOTHING if value is None else points(value)


def chosen(summary: Facts) -> Sheet:
    """How many rounds validation chose."""
    rows = tuple((e["task"], e["variant"], ", ".join(map(str, e["rounds"]))) for e in summary["chosen"])
    note = "The smallest T with the best exact match on easy validation; test examples have no say in it."
    return Sheet("chosen", "Rounds that validation chose", ("Task", "variant", "T, a seed each"), rows, note)


def together(summary: Facts) -> Sheet:
    """Means over the runs of the default variant of what members' errors have in common."""
    keys = (
        "error_correlation",
        "both_wrong",
        "same_wrong",
        "all_same_wrong",
        "same_wrong_answer",
        "all_same_wrong_answer",
    )
    rows = []
    for system in ("ensemw2s", "bagging"):
        for split in (VALIDATION, *SPLITS):
            own = [p for p in summary["diagnosis"]["points"] if (p["system"], p["split"]) == (system, split)]
            if own:
                cells = [_average([p[key] for p in own]) for key in keys]
                shown = [plain(cells[0]), *(percent(value, "") for value in cells[1:])]
                gain = points(_average([p["gain"] for p in own]))
                rows.append((name_of(system), SPLITS.get(split, split), *shown, gain, str(len(own))))
    headings = (
        "", "split", "correlation", "both wrong", "same wrong token", "all the same", "same wrong answer",
        "all the same", "gain", "runs",
    )  # fmt: skip
    note = (
        "Means over runs. Correlation of two members' errors; then in %: tokens that both get wrong, how often these "
        "two agree on the token, tokens on which all agree wrongly, the same two for whole decoded answers of boosted "
        "experts; and what the vote gains over its mean member, points, under teacher forcing."
    )
    return Sheet("diagnosis", "What members' errors have in common", headings, tuple(rows), note)


def _average(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def associations(summary: Facts) -> Sheet:
    """Does what errors have in common go with the vote's gain."""
    rows = tuple(
        (FIGURES[e["figure"]], e["split"], plain(e["rho"]), f"{e['p']:.2g}", str(e["n"]))
        for e in summary["diagnosis"]["associations"]
    )
    note = (
        "Spearman's rank correlation over the runs of the default variant (the ensemble's and bagging's together) "
        "between a figure of the members' errors and the vote's gain over its mean member, in exact match under "
        "teacher forcing; p by permutation. Runs of one task are not independent of each other."
    )
    return Sheet("diagnosis", "Common errors against the vote's gain", ("", "split", "ρ", "p", "runs"), rows, note)
