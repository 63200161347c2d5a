"""results.json and plots in, the page of a report out: what each part shows, as text, for the template to lay out.

All that is said is worked out here and in `summary`; the template only arranges and escapes it. The page loads nothing:
plots are data URIs, and a content policy in its head forbids the rest.
"""

from __future__ import annotations

import base64
import functools
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from ensemw2s.evaluation.plots import DARK, LIGHT
from ensemw2s.evaluation.summary import summarise
from ensemw2s.evaluation.wording import (
    NOTHING,
    SPLITS,
    amount,
    compared,
    count,
    figure,
    label,
    number,
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
    ("The ensemble over one expert", "+4", "up to +6", "ensemw2s", "expert_single"),
    ("Its student over a student of one expert", "+3.2", "+2.28", "student_ensemw2s", "student_single"),
)

CAPTIONS = {
    "systems": "Exact match of every system; the thin line is its 95 % interval.",
    "rounds": "Exact match of the ensemble that the rounds so far make.",
    "alpha": "Alpha and weighted error of each round; dashes are the experts of a round that has several.",
    "weights": "Token weights of each round in multiples of the uniform one, and the effective share of the samples.",
    "agreement": "How often labels are right, by the experts’ agreement (with Wilson’s 95 % interval), and how many.",
}


def page(results: dict[str, Any], light: dict[str, bytes], dark: dict[str, bytes]) -> str:
    """The whole page.

    Args:
        results: Contents of results.json; systems may be missing and values null.
        light: PNG bytes of each plot on light paper, by name.
        dark: The same on dark paper.

    Returns:
        HTML, every value escaped.
    """
    plots = {
        name: {"light": _data_uri(light[name]), "dark": _data_uri(dark[name]), "caption": CAPTIONS[name]}
        for name in light
    }
    return _template().render(
        name=results.get("name", "run"),
        light=LIGHT,
        dark=DARK,
        plots=plots,
        summary=summarise(results),
        keys=_key_figures(results),
        sizes=_sizes(results),
        has_options=any(
            number(figure(results, s, split, "option_accuracy")) is not None
            for s in systems_of(results)
            for split in SPLITS
        ),
        groups=_system_groups(results),
        contests=_contest_rows(results),
        pgr=_pgr_rows(results),
        paper=_paper_rows(results),
        rounds=_round_rows(results),
        fit=_fit_rows(results),
        labels=_label_rows(results),
        bases=[_accuracy_row(name, found) for name, found in (results.get("bases") or {}).items()],
        examples=[_example(e) for e in results.get("examples") or []],
        stages=_stage_rows(results),
        facts=_facts(results),
        known=[(key, value) for key, value in _facts(results)[:4] if value != NOTHING],
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


def _key_figures(results: dict[str, Any]) -> list[dict[str, str]]:
    figures = []
    for name, who in (("ensemw2s", "Ensemble"), ("student_ensemw2s", "Student")):
        for split, title in SPLITS.items():
            value = figure(results, name, split, "exact_match")
            if number(value) is not None:
                around = percent_range(figure(results, name, split, "ci95"))
                figures.append({"title": f"{who}, {title}", "value": percent(value), "beside": around, "split": split})
    found = ((results.get("pgr") or {}).get("student_ensemw2s") or {}).get("ood")
    if found:
        defined = number(found.get("value")) is not None
        beside = _ratio_range(found.get("ci95")) if defined else "undefined"
        figures.append({"title": "PGR, OOD", "value": plain(found.get("value")), "beside": beside, "split": ""})
    return figures


def _sizes(results: dict[str, Any]) -> dict[str, str]:
    """`n = 1000` of each split where all systems share it, else empty: then every cell has its own."""
    sizes = {}
    for split in SPLITS:
        counts = {number(figure(results, name, split, "n")) for name in systems_of(results)} - {None}
        sizes[split] = f"n = {counts.pop():.0f}" if len(counts) == 1 else ""
    return sizes


def _accuracy_row(name: str, found: dict[str, Any] | None) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name}
    for split in SPLITS:
        figures = (found or {}).get(split) or {}
        row[split] = {
            "exact": percent(figures.get("exact_match"), ""),
            "range": "" if pair(figures.get("ci95")) is None else percent_range(figures["ci95"]),
            "n": "" if number(figures.get("n")) is None else f"n = {count(figures['n'])}",
            "tokens": percent(figures.get("token_accuracy"), ""),
            "nll": plain(figures.get("nll"), 3),
            "options": percent(figures.get("option_accuracy"), ""),
        }
    return row


def _system_groups(results: dict[str, Any]) -> list[dict[str, Any]]:
    groups: dict[str, list[dict[str, Any]]] = {"Weak supervisors": [], "Strong student": []}
    for name in systems_of(results):
        found = results["systems"][name] or {}
        cost = found.get("cost") or {}
        spent = [number(cost.get(key)) for key in ("train_seconds", "decode_seconds")]
        row = _accuracy_row(label(name), found) | {
            "code": name,
            "ours": name in ("ensemw2s", "student_ensemw2s"),
            "trained": amount(cost.get("tokens_trained")),
            "decoded": amount(cost.get("tokens_decoded")),
            "seconds": seconds(sum(s for s in spent if s is not None))
            if any(s is not None for s in spent)
            else NOTHING,
            "spent": f"training {seconds(spent[0])}, decoding {seconds(spent[1])}",
        }
        groups["Strong student" if name.startswith("student_") else "Weak supervisors"].append(row)
    return [{"title": title, "rows": rows} for title, rows in groups.items() if rows]


def _contest_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Every comparison that was made, one row for a pair, on a scale that all rows of a system share."""
    order: dict[tuple[str, str], None] = {}
    for entry in results.get("comparisons") or []:
        order.setdefault((str(entry.get("a")), str(entry.get("b"))))
    found = {ab: {split: compared(results, *ab, split) for split in SPLITS} for ab in order}
    reach: dict[str, float] = {}
    for (a, _), bouts in found.items():
        ends = [abs(end) for bout in bouts.values() if bout for end in bout["ci95"]]
        reach[a] = max([reach.get(a, 0.0), *ends])
    rows: list[dict[str, Any]] = []
    for (a, b), bouts in found.items():
        row: dict[str, Any] = {"a": label(a), "b": label(b), "new": not rows or rows[-1]["a"] != label(a)}
        for split, bout in bouts.items():
            row[split] = bout and {
                "difference": points(bout["difference"]),
                "range": points_range(bout["ci95"]),
                "verdict": bout["verdict"],
                "at": [round(50 + 46 * v / (reach[a] or 1.0), 2) for v in (*bout["ci95"], bout["difference"])],
            }
        rows.append(row)
    return rows


def _pgr_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for name, splits in (results.get("pgr") or {}).items():
        first = next((split for split in SPLITS if (splits or {}).get(split)), None)
        for split, title in SPLITS.items():
            found = (splits or {}).get(split)
            if not found:
                continue
            gain, gap = found.get("student_minus_weak") or {}, found.get("ceiling_minus_weak") or {}
            value, bounds = number(found.get("value")), pair(gap.get("ci95"))
            note = ""
            if value is None:
                note = found.get("reason") or "not computed"
            elif bounds is not None and bounds[0] <= 0 <= bounds[1]:
                note = "the ceiling may be no better than the weak expert: read the differences, not the ratio"
            rows.append(
                {
                    "name": label(name) if split == first else "",
                    "split": title,
                    "value": "null" if value is None else plain(value),
                    "range": ""
                    if pair(found.get("ci95")) is None
                    else " to ".join(plain(end) for end in found["ci95"]),
                    "note": note,
                    "gain": points(gain.get("difference")),
                    "gain_range": points_range(gain.get("ci95")),
                    "gap": points(gap.get("difference")),
                    "gap_range": points_range(gap.get("ci95")),
                }
            )
    return rows


def _ratio_range(ci95: Any) -> str:
    ends = pair(ci95)
    return "" if ends is None else f"{plain(ends[0])} to {plain(ends[1])}"


def _paper_rows(results: dict[str, Any]) -> list[dict[str, str]]:
    rows = []
    for title, paper_id, paper_ood, a, b in PAPER:
        row = {"title": title, "paper_id": paper_id, "paper_ood": paper_ood}
        for split in SPLITS:
            bout = compared(results, a, b, split)
            row[split] = points(bout["difference"]) if bout else NOTHING
            row[f"{split}_range"] = points_range(bout["ci95"]) if bout else "not compared"
        rows.append(row)
    return rows


def _round_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for entry in results.get("rounds") or []:
        experts = [
            {
                "name": expert.get("name") or NOTHING,
                "base": expert.get("base") or NOTHING,
                "alpha": plain(expert.get("alpha"), 3),
                "weight": plain(expert.get("weight"), 3),
                "temperature": plain(expert.get("temperature"), 3),
                "weighted_error": plain(expert.get("weighted_error"), 4),
                "error": plain(expert.get("error"), 4),
                "loss": plain(expert.get("train_loss"), 3),
                "seconds": seconds(expert.get("seconds")),
            }
            for expert in entry.get("experts") or []
        ]
        rows.append(
            {
                "round": entry.get("round", NOTHING),
                "alpha": plain(entry.get("alpha"), 3),
                "weighted_error": plain(entry.get("weighted_error"), 4),
                "reference": plain(entry.get("reference_error"), 4),
                "vote": "yes" if entry.get("accepted", True) else "no",
                "effective": percent((entry.get("weights") or {}).get("effective_fraction")),
                "experts": experts,
            }
        )
    return rows


def _fit_rows(results: dict[str, Any]) -> list[dict[str, str]]:
    """Loss of the ensemble on each half of validation, before and after its votes were fitted on one of them."""
    fit = results.get("fit") or {}
    halves = {"fitted": "fitted on", "held_out": "held out"}
    return [
        {
            "half": title,
            "examples": count((fit.get("examples") or {}).get(half)),
            **{when: plain(((fit.get("nll") or {}).get(when) or {}).get(half), 4) for when in ("before", "after")},
        }
        for half, title in halves.items()
        if fit
    ]


def _label_rows(results: dict[str, Any]) -> list[dict[str, str]]:
    rows = []
    for maker, found in (results.get("labels") or {}).items():
        reasons = ((found or {}).get("finish_reasons") or {}).items()
        rows.append(
            {
                "maker": label(maker),
                "n": count((found or {}).get("n")),
                "accuracy": percent((found or {}).get("accuracy")),
                "reasons": ", ".join(f"{reason} {count(n)}" for reason, n in reasons) or NOTHING,
            }
        )
    return rows


def _example(example: dict[str, Any]) -> dict[str, Any]:
    correct = example.get("correct")
    return {
        "id": example.get("id") or "",
        "prompt": example.get("prompt") or "",
        "truth": NOTHING if example.get("truth") is None else example["truth"],
        "answer": NOTHING if example.get("answer") is None else example["answer"],
        "mark": "unknown" if correct is None else "right" if correct else "wrong",
        "agreement": plain(example.get("agreement")),
        "tokens": [_token(token) for token in example.get("tokens") or []],
    }


def _token(token: dict[str, Any]) -> dict[str, Any]:
    level = number(token.get("agreement"))
    # Rounded, so that a vote that is a rounding error short of unanimous is not shown as split.
    share = 100 if level is None else max(0, min(100, round(100 * level)))
    text = str(token.get("text") or "")
    votes = [
        {
            "member": str(vote.get("member", NOTHING)),
            "alpha": plain(vote.get("alpha")),
            "token": _visible(str(vote.get("token") or "")),
            "agrees": str(vote.get("token") or "") == text,
        }
        for vote in token.get("votes") or []
    ]
    said = [f"{'✓' if v['agrees'] else '✗'} {v['member']} (α {v['alpha']}): {v['token']}" for v in votes]
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


def _stage_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    stages = results.get("stages") or []
    longest = max((number(s.get("seconds")) or 0.0 for s in stages), default=0.0) or 1.0
    return [
        {
            "name": stage.get("name") or NOTHING,
            "seconds": seconds(stage.get("seconds")),
            "status": stage.get("status") or NOTHING,
            "share": round(100 * (number(stage.get("seconds")) or 0.0) / longest, 1),
        }
        for stage in stages
    ]


def _facts(results: dict[str, Any]) -> list[tuple[str, str]]:
    facts = [
        ("seed", str(results.get("seed", NOTHING))),
        ("config fingerprint", str(results.get("config_fingerprint") or NOTHING)),
        ("created", str(results.get("created") or NOTHING)),
        ("total time", seconds(results.get("total_seconds"))),
    ]
    return facts + [(str(key), str(value)) for key, value in (results.get("versions") or {}).items()]


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
