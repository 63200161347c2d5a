"""Results and plots in, the page of a report out: what each part shows, as text, for the template to lay out.

All that is said is worked out here and in `summary`; the template only arranges and escapes it. The page loads nothing:
plots are data URIs, and a content policy in its head forbids the rest.
"""

from __future__ import annotations

import base64
import functools

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from ensemw2s.boosting.records import AnchorSearch, ExpertRecord, VoteFit, member_name
from ensemw2s.config.systems import ENSEMW2S, EXPERT_SINGLE, STUDENT_ENSEMW2S, STUDENT_SINGLE, TABLE
from ensemw2s.evaluation.records import BySplit, ExampleShown, Interval, Metrics, Pgr, RunResults, TokenShown
from ensemw2s.evaluation.summary import summarise
from ensemw2s.evaluation.themes import DARK, LIGHT
from ensemw2s.evaluation.wording import (
    NOTHING,
    SPLITS,
    Bout,
    amount,
    compared,
    count,
    label,
    number,
    of_anchor,
    of_passes,
    pair,
    percent,
    percent_range,
    plain,
    points,
    points_range,
    seconds,
    systems_of,
)

# arXiv 2505.21959 and 2410.04571v2, abstract, in points: what the ensemble (experts) and its student gained.
PAPER = (
    ("The ensemble over one expert", "+4", "up to +6", ENSEMW2S, EXPERT_SINGLE),
    ("Its student over a student of one expert", "+3.2", "+2.28", STUDENT_ENSEMW2S, STUDENT_SINGLE),
)

CAPTIONS = {
    "systems": "Exact match of every system; the thin line is its 95 % interval.",
    "rounds": "Exact match of the ensemble that the rounds so far make.",
    "alpha": "Alpha and weighted error of each round; dashes are the experts of a round that has several.",
    "weights": "Token weights of each round in multiples of the uniform one, and the effective share of the samples.",
    "agreement": "How often labels are right, by the experts’ agreement (with Wilson’s 95 % interval), and how many.",
}


def page(results: RunResults, light: dict[str, bytes], dark: dict[str, bytes]) -> str:
    """The whole page.

    Args:
        results: Figures of a run; systems and figures may be missing.
        light: PNG bytes of each plot on light paper, by name.
        dark: The same on dark paper.

    Returns:
        HTML, every value escaped.
    """
    plots = {
        name: {"light": data_uri(light[name]), "dark": data_uri(dark[name]), "caption": CAPTIONS[name]}
        for name in light
    }
    metrics = [results.metrics(name, split) for name in results.systems for split in SPLITS]
    facts = _facts(results)
    return _template().render(
        name=results.name,
        light=LIGHT,
        dark=DARK,
        plots=plots,
        task=results.task,
        summary=summarise(results),
        keys=_key_figures(results),
        sizes=_sizes(results),
        has_options=any(number(found.option_accuracy) is not None for found in metrics),
        groups=_system_groups(results),
        contests=_contest_rows(results),
        pgr=[row for name, found in results.pgr.items() for row in _pgr_rows(name, found)],
        paper=_paper_rows(results),
        rounds=_round_rows(results),
        passes=_pass_rows(results),
        passes_note=of_passes(results.passes or ()),
        anchors=[] if results.anchor is None else _anchor_rows(results.anchor),
        anchor_note="" if results.anchor is None else of_anchor(results.anchor),
        fit=[] if results.fit is None else _fit_rows(results.fit),
        labels=_label_rows(results),
        choices=_choice_rows(results),
        bases=[_accuracy_row(name, found) for name, found in results.bases.items()],
        examples=[_example(example) for example in results.examples],
        stages=_stage_rows(results),
        facts=facts,
        known=[(key, value) for key, value in facts[:4] if value != NOTHING],
    )


@functools.cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("ensemw2s.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _key_figures(results: RunResults) -> list[dict[str, str]]:
    figures = []
    for name, who in ((ENSEMW2S, "Ensemble"), (STUDENT_ENSEMW2S, "Student")):
        for split, title in SPLITS.items():
            found = results.metrics(name, split)
            if number(found.exact_match) is not None:
                value, around = percent(found.exact_match), percent_range(found.ci95)
                figures.append({"title": f"{who}, {title}", "value": value, "beside": around, "split": split})
    recovered = results.recovered(STUDENT_ENSEMW2S, "ood")
    if recovered is not None:
        beside = _ratio_range(recovered.ci95) if number(recovered.value) is not None else "undefined"
        figures.append({"title": "PGR, OOD", "value": plain(recovered.value), "beside": beside, "split": ""})
    return figures


def _sizes(results: RunResults) -> dict[str, str]:
    """`n = 1000` of each split where all systems share it, else empty: then every cell has its own."""
    sizes = {}
    for split in SPLITS:
        counts = {results.metrics(name, split).n for name in results.systems} - {None}
        sizes[split] = f"n = {counts.pop()}" if len(counts) == 1 else ""
    return sizes


def _accuracy_row(name: str, found: BySplit[Metrics]) -> dict[str, object]:
    return {"name": name, **{split: _accuracy(found.on(split) or Metrics()) for split in SPLITS}}


def _accuracy(found: Metrics) -> dict[str, str]:
    return {
        "exact": percent(found.exact_match, ""),
        "range": "" if pair(found.ci95) is None else percent_range(found.ci95),
        "n": "" if found.n is None else f"n = {found.n}",
        "tokens": percent(found.token_accuracy, ""),
        "nll": plain(found.nll, 3),
        "options": percent(found.option_accuracy, ""),
        "measures": ""
        if found.option_acc is None
        else f"{percent(found.option_acc)} / {percent(found.option_acc_norm)}",
    }


def _system_groups(results: RunResults) -> list[dict[str, object]]:
    groups: dict[str, list[dict[str, object]]] = {"Weak supervisors": [], "Strong student": []}
    for name in systems_of(results):
        system, found = TABLE.get(name), results.systems[name]
        row = _accuracy_row(label(name), found) | {"code": name, "ours": system is not None and system.ours}
        row |= dict.fromkeys(("trained", "decoded", "seconds"), NOTHING) | {"spent": ""}
        if (cost := found.cost) is not None:
            row |= {
                "trained": amount(cost.tokens_trained),
                "decoded": amount(cost.tokens_decoded),
                "seconds": seconds(cost.train_seconds + cost.decode_seconds),
                "spent": f"training {seconds(cost.train_seconds)}, decoding {seconds(cost.decode_seconds)}",
            }
        groups["Strong student" if system is not None and system.is_student else "Weak supervisors"].append(row)
    return [{"title": title, "rows": rows} for title, rows in groups.items() if rows]


def _contest_rows(results: RunResults) -> list[dict[str, object]]:
    """Every comparison that was made, one row for a pair, on a scale that all rows of a system share."""
    pairs = dict.fromkeys((entry.a, entry.b) for entry in results.comparisons)
    found = {ab: {split: compared(results, *ab, split) for split in SPLITS} for ab in pairs}
    reach: dict[str, float] = {}
    for (a, _), bouts in found.items():
        ends = [abs(end) for bout in bouts.values() if bout for end in bout.ci95]
        reach[a] = max([reach.get(a, 0.0), *ends])
    rows: list[dict[str, object]] = []
    for (a, b), bouts in found.items():
        row = {"a": label(a), "b": label(b), "new": not rows or rows[-1]["a"] != label(a)}
        rows.append(row | {split: bout and _duel(bout, reach[a] or 1.0) for split, bout in bouts.items()})
    return rows


def _duel(bout: Bout, reach: float) -> dict[str, object]:
    """A comparison, and where its interval's ends and its difference lie in a drawing 100 wide with 0 in the middle."""
    return {
        "difference": points(bout.difference),
        "range": points_range(bout.ci95),
        "verdict": bout.verdict,
        "at": [round(50 + 46 * v / reach, 2) for v in (*bout.ci95, bout.difference)],
    }


def _pgr_rows(name: str, splits: BySplit[Pgr]) -> list[dict[str, str]]:
    known = {split: found for split in SPLITS if (found := splits.on(split)) is not None}
    rows = []
    for split, found in known.items():
        gain, gap = found.student_minus_weak, found.ceiling_minus_weak
        value, bounds = number(found.value), pair(gap.ci95)
        note = ""
        if value is None:
            note = found.reason or "not computed"
        elif bounds is not None and bounds[0] <= 0 <= bounds[1]:
            note = "the ceiling may be no better than the weak expert: read the differences, not the ratio"
        rows.append(
            {
                "name": label(name) if split == next(iter(known)) else "",
                "split": SPLITS[split],
                "value": "null" if value is None else plain(value),
                "range": _ratio_range(found.ci95),
                "note": note,
                "gain": points(gain.difference),
                "gain_range": points_range(gain.ci95),
                "gap": points(gap.difference),
                "gap_range": points_range(gap.ci95),
            }
        )
    return rows


def _ratio_range(ci95: Interval | None) -> str:
    ends = pair(ci95)
    return "" if ends is None else f"{plain(ends[0])} to {plain(ends[1])}"


def _paper_rows(results: RunResults) -> list[dict[str, str]]:
    rows = []
    for title, paper_id, paper_ood, a, b in PAPER:
        row = {"title": title, "paper_id": paper_id, "paper_ood": paper_ood}
        for split in SPLITS:
            bout = compared(results, a, b, split)
            row[split] = points(bout.difference) if bout else NOTHING
            row[f"{split}_range"] = points_range(bout.ci95) if bout else "not compared"
        rows.append(row)
    return rows


def _round_rows(results: RunResults) -> list[dict[str, object]]:
    return [
        {
            "round": record.round,
            "alpha": plain(record.alpha, 3),
            "weighted_error": plain(record.weighted_error, 4),
            "reference": plain(record.reference_error, 4),
            "vote": "yes" if record.accepted else "no",
            "effective": percent(record.weights.effective_fraction),
            "experts": [_expert(expert, member_name(record.round, expert.name)) for expert in record.experts],
        }
        for record in results.rounds
    ]


def _expert(expert: ExpertRecord, name: str) -> dict[str, str]:
    return {
        "name": name,
        "base": expert.base,
        "alpha": plain(expert.alpha, 3),
        "weight": plain(expert.weight, 3),
        "temperature": plain(expert.temperature, 3),
        "weighted_error": plain(expert.weighted_error, 4),
        "error": plain(expert.error, 4),
        "loss": plain(expert.train_loss, 3),
        "seconds": seconds(expert.seconds),
    }


def _fit_rows(fit: VoteFit) -> list[dict[str, str]]:
    """Loss of the ensemble on each half of validation, before and after its votes were fitted on one of them."""
    halves = {
        "fitted on": (fit.examples.fitted, fit.nll.before.fitted, fit.nll.after.fitted),
        "held out": (fit.examples.held_out, fit.nll.before.held_out, fit.nll.after.held_out),
    }
    return [
        {"half": title, "examples": count(n), "before": plain(before, 4), "after": plain(after, 4)}
        for title, (n, before, after) in halves.items()
    ]


def _pass_rows(results: RunResults) -> list[dict[str, object]]:
    return [
        {
            "number": str(found.number),
            **{split: _accuracy((found.ensemble and found.ensemble.on(split)) or Metrics()) for split in SPLITS},
            "kept": NOTHING if found.record is None else f"{count(found.record.kept)} of {count(found.record.prompts)}",
            "passing": NOTHING if found.record is None else count(found.record.passing),
            "right": percent(found.right, ""),
        }
        for found in results.passes or ()
    ]


def _anchor_rows(found: AnchorSearch) -> list[dict[str, object]]:
    return [
        {
            "anchor": f"{point.anchor:g}",
            "accuracy": percent(point.accuracy, ""),
            "agreement": percent(point.agreement, ""),
            "chosen": point.anchor == found.anchor,
        }
        for point in found.curve
    ]


def _label_rows(results: RunResults) -> list[dict[str, str]]:
    return [
        {
            "maker": label(maker),
            "n": count(found.n),
            "accuracy": percent(found.accuracy),
            "reasons": ", ".join(f"{reason} {count(n)}" for reason, n in found.finish_reasons.items()) or NOTHING,
        }
        for maker, found in results.labels.items()
    ]


def _choice_rows(results: RunResults) -> list[dict[str, str]]:
    """How the labels of each student were chosen; nothing where all were kept."""
    return [
        {
            "student": label(student),
            "how": found.labels + (", easy data alone" if found.easy_only else ""),
            "agreed": percent(found.agreed),
            "kept": f"{count(found.kept)} of {count(found.prompts)}",
            "accuracy": percent(found.accuracy),
            "agreed_accuracy": percent(found.agreed_accuracy),
            "weight": plain(found.weight),
        }
        for student, found in (results.choices or {}).items()
        if found.labels != "all"
    ]


def _example(example: ExampleShown) -> dict[str, object]:
    return {
        "id": example.id,
        "prompt": example.prompt,
        "truth": NOTHING if example.truth is None else example.truth,
        "answer": NOTHING if example.answer is None else example.answer,
        "mark": "unknown" if example.correct is None else "right" if example.correct else "wrong",
        "agreement": plain(example.agreement),
        "tokens": [_token(token) for token in example.tokens],
    }


def _token(token: TokenShown) -> dict[str, object]:
    level, text = number(token.agreement), token.text
    # Rounded, so that a vote that is a rounding error short of unanimous is not shown as split.
    share = 100 if level is None else max(0, min(100, round(100 * level)))
    votes = [{"member": vote.member, "alpha": plain(vote.alpha), "token": _visible(vote.token)} for vote in token.votes]
    said = [
        f"{'✓' if vote.token == text else '✗'} {vote.member} (α {plain(vote.alpha)}): {_visible(vote.token)}"
        for vote in token.votes
    ]
    body = text.lstrip(" ")
    return {
        "space": text[: len(text) - len(body)],
        "text": _visible(body) if body or not text else "␣",
        "share": share,
        "title": "\n".join([f"agreement {plain(level)}", *said]),
        "votes": votes,
        "doubt": "" if share == 100 else "some" if share > 50 else "much",
    }


def _visible(text: str) -> str:
    """A token's text with line breaks and tabs that one can see."""
    return text.replace("\n", "↵").replace("\r", "").replace("\t", "⇥") or "∅"


def _stage_rows(results: RunResults) -> list[dict[str, object]]:
    stages = results.stages or ()
    longest = max((number(stage.seconds) or 0.0 for stage in stages), default=0.0) or 1.0
    return [
        {
            "name": stage.name,
            "seconds": seconds(stage.seconds),
            "status": stage.status or NOTHING,
            "share": round(100 * (number(stage.seconds) or 0.0) / longest, 1),
        }
        for stage in stages
    ]


def _facts(results: RunResults) -> list[tuple[str, str]]:
    return [
        ("seed", NOTHING if results.seed is None else str(results.seed)),
        ("config fingerprint", results.config_fingerprint or NOTHING),
        ("created", results.created or NOTHING),
        ("total time", seconds(results.total_seconds)),
        *(results.versions or {}).items(),
    ]


def data_uri(png: bytes) -> str:
    """A PNG as an address that has it inside."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
