"""A study's statistics in, its figures out: differences with intervals, curves over rounds, cost, and common errors.

Drawn in the themes and with the canvas of a run's report (`evaluation.plots`), so that both look alike.
"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from ensemw2s.config.study import DEFAULT
from ensemw2s.config.systems import BAGGING, DEEP_ENSEMBLE, ENSEMW2S, TABLE
from ensemw2s.evaluation.plots import Plot, canvas, legend
from ensemw2s.evaluation.records import VALIDATION
from ensemw2s.evaluation.themes import Theme
from ensemw2s.evaluation.wording import SPLITS, points
from ensemw2s.study.records import StudyFigures
from ensemw2s.study.sheet import lower_first, name_of, scope_name, scopes
from ensemw2s.study.summary import ALL, is_student

MOST = 12
"""Panels of curves that are drawn; a study of more tasks shows the first."""


def _differences(summary: StudyFigures, theme: Theme) -> Figure | None:
    """The ensemble minus the rivals that it must beat, for all tasks and each."""
    own = [e for e in summary.comparisons if e.variant == DEFAULT and e.a == ENSEMW2S]
    rivals = [name for name in reversed(TABLE[ENSEMW2S].claims_over) if any(e.b == name for e in own)]
    entries = [e for e in own if e.b in rivals]
    if not entries:
        return None
    order = [(scope, rival) for rival in rivals for scope in scopes(summary)]
    drawn, (axes,) = canvas(0.24 * len(order) + 0.7)
    for (split, title), colour, shift in zip(SPLITS.items(), (theme.id, theme.ood), (-0.17, 0.17), strict=True):
        shown = False
        for row, (scope, rival) in enumerate(order):
            for e in entries:
                if (e.task, e.b, e.split) == (scope, rival, split):
                    axes.plot([e.mean], [row + shift], "o", color=colour, label=None if shown else title)
                    shown = True
                    if e.ci95:
                        axes.plot(e.ci95, [row + shift] * 2, color=colour, linewidth=1.2)
    axes.axvline(0, color=theme.ink, linewidth=0.8)
    axes.set_yticks(range(len(order)), [f"{scope_name(scope)} − {name_of(rival)}" for scope, rival in order])
    for row, (scope, _) in enumerate(order):
        if scope == ALL:
            axes.axhspan(row - 0.5, row + 0.5, color=theme.faint, zorder=0)
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: points(v)))
    axes.set_xlabel("ensemble minus its rival, points")
    axes.grid(False, axis="y")
    axes.grid(True, axis="x")
    legend(axes)
    return drawn


def _curves(summary: StudyFigures, theme: Theme) -> Figure | None:
    """Exact match by rounds, a panel a task."""
    curves = [c for c in summary.curves if c.variant == DEFAULT][:MOST]
    if not curves:
        return None
    drawn, panels = canvas(1.25 * len(curves) + 0.5, rows=len(curves))
    series = ((VALIDATION, "validation", theme.other, "^"), ("id", "ID", theme.id, "o"), ("ood", "OOD", theme.ood, "s"))
    for axes, curve in zip(panels, curves, strict=True):
        for key, title, colour, marker in series:
            axes.plot(curve.rounds, curve.on(key), color=colour, marker=marker, label=title)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_ylabel(curve.task, fontsize=6.5)
        axes.margins(y=0.15)
    panels[-1].set_xlabel("rounds")
    legend(panels[0])
    return drawn


def _cost(summary: StudyFigures, theme: Theme) -> Figure | None:
    """Exact match on OOD by the tokens that training took, supervisors included."""
    place = scopes(summary)[0]
    costs = {e.system: e for e in summary.costs if e.task == place and e.variant == DEFAULT}
    points_of = {}
    for e in summary.systems:
        if (e.task, e.variant, e.split) == (place, DEFAULT, "ood") and e.system in costs:
            cost = costs[e.system]
            points_of[e.system] = (cost.tokens_trained + (cost.supervision_trained or 0), e.mean)
    if not points_of:
        return None
    drawn, (axes,) = canvas(3.0)
    for system, (tokens, value) in points_of.items():
        student = is_student(system)
        colour = theme.ood if student else theme.id
        axes.plot([tokens], [value], "s" if student else "o", color=colour)
        axes.annotate(name_of(system), (tokens, value), (4, 3), textcoords="offset points", fontsize=6)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v / 1e6:g} M"))
    axes.margins(x=0.25, y=0.12)
    axes.set_xlabel("tokens trained, supervisors included")
    axes.set_ylabel("exact match, OOD")
    return drawn


def _diagnosis(summary: StudyFigures, theme: Theme) -> Figure | None:
    """Gain of the vote over its mean member, by the correlation of errors and by agreement on wrong tokens."""
    found = summary.diagnosis.points
    if not found:
        return None
    drawn, panels = canvas(4.6, rows=2)
    looks = {"id": (theme.id, "ID"), "ood": (theme.ood, "OOD"), VALIDATION: (theme.other, "validation")}
    titles = ("correlation of two members' errors", "same wrong token, where two are wrong")
    for axes, key, title in zip(panels, ("error_correlation", "same_wrong"), titles, strict=True):
        for split, (colour, name) in looks.items():
            for system, marker in ((ENSEMW2S, "o"), (DEEP_ENSEMBLE, "+"), (BAGGING, "x")):
                own = [p for p in found if p.split == split and p.system == system and getattr(p, key) is not None]
                if not own:
                    continue
                x, y = np.array([getattr(p, key) for p in own]), np.array([p.gain for p in own])
                suffix = "" if system == ENSEMW2S else f", {lower_first(name_of(system))}"
                axes.plot(x, y, marker, color=colour, markersize=3.5, alpha=0.8, label=name + suffix)
        axes.axhline(0, color=theme.muted, linewidth=0.7)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: points(v)))
        axes.set_xlabel(title)
        axes.set_ylabel("gain of the vote, points")
    handles, names = panels[0].get_legend_handles_labels()
    panels[0].legend(handles, names, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.1)
    return drawn


PLOTS: dict[str, Plot[StudyFigures]] = {
    "comparisons": _differences,
    "chosen": _curves,
    "costs": _cost,
    "diagnosis": _diagnosis,
}
"""By the key of the sheet that they stand beside."""

CAPTIONS = {
    "comparisons": "The ensemble minus its rivals: mean over seeds and 95 % interval, for all tasks and each.",
    "chosen": "Exact match by number of rounds, mean over seeds, under teacher forcing. Only validation may choose.",
    "costs": "Exact match on OOD by the tokens that training took, those of a student's supervisors included.",
    "diagnosis": "What a vote gains over its mean member, by what the members' errors have in common; a dot is a run "
    "of the default variant.",
}
