"""What reviewers of the paper asked, and what studies answer: study.json files in, sentences out."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence

from ensemw2s.config.study import DEFAULT
from ensemw2s.config.systems import (
    BAGGING,
    BASE_ENSEMBLE,
    COMPUTE_MATCHED,
    DEEP_ENSEMBLE,
    ENSEMW2S,
    EXPERT_SINGLE,
    STUDENT_BAGGING,
    STUDENT_BASE_ENSEMBLE,
    STUDENT_DEEP_ENSEMBLE,
    STUDENT_EASY_ONLY,
    STUDENT_ENSEMW2S,
    STUDENT_SINGLE,
)
from ensemw2s.evaluation.records import HARD_VALIDATION, VALIDATION
from ensemw2s.evaluation.wording import SPLITS, amount, in_a_sentence, percent, plain, points
from ensemw2s.study.records import MeanDifference, StudyResults, SystemDifference
from ensemw2s.study.rows import CHOSEN
from ensemw2s.study.sheet import difference, find, lower_first, mean_text, name_of, p_value, scopes
from ensemw2s.study.summary import ALL

SAME_PRIOR = {"token": "boosting.prior=samme", "window": "window", "example": "example"}
"""Unit of the weights → the variant that has it with the prior samme."""

TEAMS = (DEEP_ENSEMBLE, BAGGING)
"""As many experts as the ensemble has, without boosting. Studies of version 0.2 have bagging alone."""

FLOOR = 0.05
"""Exact match under which systems are too often wrong to be told apart."""


def answers(studies: Sequence[StudyResults], not_run: Collection[str]) -> Iterator[tuple[str, list[str]]]:
    """The questions, each with an answer a study that has one.

    Args:
        studies: Contents of study.json files.
        not_run: Names of the studies that are configured and were not run.
    """
    for question, answer in QUESTIONS.items():
        found = [(study.name, answer(study)) for study in studies]
        yield question, [f"{name}: {text}." for name, text in found if text] or ["Nothing here answers this."]
    yield "Larger models, other families?", [f"{s.name}: {_sizes(s)}." for s in studies]
    if not_run:
        yield "What is configured and was not run?", [f"{', '.join(sorted(not_run))}."]


def _sizes(study: StudyResults) -> str:
    return "; ".join(
        f"{name} of {', '.join(f'{n:,}'.replace(',', ' ') for n in sizes)} parameters"
        for name, sizes in study.parameters.items()
        if sizes
    )


def _spread(study: StudyResults) -> str:
    """How many runs there are, and the means of the main systems with their intervals over seeds."""
    tasks = len([scope for scope in scopes(study) if scope != ALL])
    text = f"{len(study.seeds)} seeds, {tasks} task{'s' * (tasks > 1)}, {study.finished} runs"
    for system in (BASE_ENSEMBLE, EXPERT_SINGLE, BAGGING, DEEP_ENSEMBLE, ENSEMW2S, STUDENT_ENSEMW2S):
        where = {"task": scopes(study)[0], "variant": DEFAULT, "system": system}
        found = {title: find(study.systems, **where, split=split) for split, title in SPLITS.items()}
        if all(found.values()):
            text += f"; {in_a_sentence(system)} " + ", ".join(f"{k} {mean_text(e)}" for k, e in found.items())
    return text


def _against(a: str, *rivals: str) -> Callable[[StudyResults], str]:
    """Answers with the differences between a system and its rivals."""

    def answer(study: StudyResults) -> str:
        own = [e for e in study.comparisons if (e.task, e.variant) == (scopes(study)[0], DEFAULT)]
        said = [_both(own, a, rival) for rival in rivals]
        return "; ".join(text for text in said if text)

    return answer


def _both(comparisons: Sequence[SystemDifference], a: str, b: str) -> str:
    """ID and OOD difference of two systems, with p."""
    found = {title: find(comparisons, a=a, b=b, split=split) for split, title in SPLITS.items()}
    said = [f"{title} {difference(e)}{_p(e)}" for title, e in found.items() if e is not None]
    return ", ".join(said) + (f" against {lower_first(name_of(b))}" if said else "")


def _p(entry: MeanDifference) -> str:
    return f", p = {p_value(entry)}" if entry.pairs > 1 else ""


def _units(study: StudyResults) -> str:
    """Units of the weights, all with one prior; windows and examples cannot do without."""
    told = {DEFAULT: study.variants, "token": study.pairs}
    for other, entries in reversed(told.items()):
        said = []
        for unit, variant in SAME_PRIOR.items():
            entry = find(entries, variant=variant)
            if entry is not None:
                figures = (entry.of(ENSEMW2S, split) for split in (VALIDATION, *SPLITS))
                said.append(f"{unit} {', '.join(difference(figure) for figure in figures)}")
        if said:
            prior = " (whose prior is none)" if other == DEFAULT else "s"
            return f"with the prior samme, minus {other}{prior}, on validation, ID, OOD: {'; '.join(said)}"
    return ""


def _rounds(study: StudyResults) -> str:
    """T by validation, and how often it was as large as it could be."""
    own = _against(CHOSEN, *TEAMS)(study)
    picked = [e for e in study.chosen if e.variant == DEFAULT]
    most = {c.task: c.rounds[-1] for c in study.curves if c.variant == DEFAULT}
    values = [(e.task, t) for e in picked for t in e.rounds]
    if not own or not values:
        return own
    at_most = sum(t == most.get(task) for task, t in values)
    text = f"{own}; the most rounds that there were in {at_most} of {len(values)} runs"
    return f"{text}, so more might be better" if 2 * at_most > len(values) else text


def _other_data(wanted: str) -> Callable[[StudyResults], str]:
    """Answers with the ensemble's differences in variants of this split."""

    def answer(study: StudyResults) -> str:
        said, scope = [], scopes(study)[0]
        for found in study.other_data:
            if wanted not in found.variant:
                continue
            where = {"task": scope, "variant": found.variant}
            own = [e for e in study.comparisons if (e.task, e.variant) == (scope, found.variant)]
            said += [_both(own, ENSEMW2S, rival) for rival in (*TEAMS, COMPUTE_MATCHED)]
            levels = [find(study.systems, **where, system=s, split="ood") for s in (ENSEMW2S, *TEAMS)]
            known = [level.mean for level in levels if level is not None]
            if len(known) > 1 and max(known) < FLOOR:
                said.append(f"OOD all are right in fewer than {percent(FLOOR)} of the cases, so OOD this says nothing")
        return "; ".join(text for text in said if text)

    return answer


def _agreement(study: StudyResults) -> str:
    """How often all members agree on a wrong token, and whether common errors go with the vote's gain."""
    said = []
    for split, title in SPLITS.items():
        points = [p for p in study.diagnosis.points if (p.system, p.split) == (ENSEMW2S, split)]
        known = [p.all_same_wrong for p in points if p.all_same_wrong is not None]
        if known:
            said.append(
                f"{title} all members agree on a wrong token at {percent(sum(known) / len(known))} of the tokens"
            )
        for figure, name in (
            ("error_correlation", "correlation of errors"),
            ("same_wrong", "agreement where two are wrong"),
        ):
            found = find(study.diagnosis.associations, split=split, figure=figure)
            if found is not None:
                said.append(f"{name} against the vote's gain, ρ {plain(found.rho)}, p = {found.p:.2g}")
    return "; ".join(said)


def _recovered(study: StudyResults) -> str:
    own = [e for e in study.pgr if (e.task, e.variant) == (scopes(study)[0], DEFAULT)]
    own = [e for e in own if e.system == STUDENT_ENSEMW2S]
    return "; ".join(
        f"{SPLITS[e.split]}, of EnsemW2S's student: PGR undefined in {e.undefined} of {e.runs} runs"
        + (f" and else {' to '.join(map(plain, e.range))}" if e.range else "")
        + f"; ceiling − one expert is {difference(e.ceiling_minus_weak)} points"
        for e in own
    )


def _bought(study: StudyResults) -> str:
    said = []
    for system, name in ((ENSEMW2S, "the ensemble"), (COMPUTE_MATCHED, "one expert, full budget")):
        e = find(study.costs, task=scopes(study)[0], variant=DEFAULT, system=system)
        if e is not None and e.gain_id is not None:
            gains = f"ID {points(e.gain_id)}, OOD {points(e.gain_ood)}"
            said.append(f"{gains} points over the weak bases for {amount(e.tokens_trained)} trained tokens of {name}")
    return "; ".join(said)


def _changed(what: str, *variants: str) -> Callable[[StudyResults], str]:
    """Answers with the ensemble of a variant, the first of these that a study has, minus the default's."""

    def answer(study: StudyResults) -> str:
        entry = next(filter(None, (find(study.variants, variant=name) for name in variants)), None)
        if entry is None:
            return ""
        titles = {VALIDATION: "validation", HARD_VALIDATION: "hard validation", **SPLITS}
        found = {title: entry.of(ENSEMW2S, split) for split, title in titles.items()}
        said = ", ".join(f"{title} {difference(e)}{_p(e)}" for title, e in found.items() if e is not None)
        return f"{what}, minus the defaults: {said}"

    return answer


QUESTIONS: dict[str, Callable[[StudyResults], str]] = {
    "Are the defaults better than the paper's printed rule?": _changed("the paper's printed rule", "paper-printed"),
    "Are the defaults better than the paper's weights in the loss?": _changed(
        "the paper's weights, as factors of the loss", "paper-loss", "paper"
    ),
    "Averages of probabilities or of log-probabilities?": _changed(
        "averages of log-probabilities", "ensemble.combine=log_probability", "log-probability"
    ),
    "How much do runs spread?": _spread,
    "Is it better than the vote of the untuned bases?": _against(ENSEMW2S, BASE_ENSEMBLE),
    "Is it better than a direct ensemble (a deep ensemble, bagging)?": _against(ENSEMW2S, *TEAMS),
    "Is it better than one expert with the training of all rounds?": _against(ENSEMW2S, COMPUTE_MATCHED),
    "Does its student learn more than others' students?": _against(
        STUDENT_ENSEMW2S,
        STUDENT_DEEP_ENSEMBLE,
        STUDENT_BAGGING,
        STUDENT_BASE_ENSEMBLE,
        STUDENT_SINGLE,
        STUDENT_EASY_ONLY,
    ),
    "Weights of tokens or of examples?": _units,
    "And when T is chosen without a look at the test?": _rounds,
    "Random splits in place of easy → hard?": _other_data("random"),
    "Another data set for the hard part?": _other_data("cross"),
    "What when experts agree on a wrong answer?": _agreement,
    "What does it cost?": _bought,
    "A figure that does not explode like PGR?": _recovered,
}


def anchor(heading: str) -> str:
    """The anchor of a heading in Markdown on GitHub."""
    return "#" + re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
