"""Results in, the figures of a report out as PNG bytes, one palette for light and one for dark paper.

Each plot is narrow (440 CSS pixels) so that its text stays readable on a phone. A series is told by its marker or its
place as well as by its colour (Okabe and Ito's), and a run that lacks the numbers of a plot has no such plot.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, PercentFormatter

from ensemw2s.config.systems import TABLE
from ensemw2s.evaluation.records import RunResults
from ensemw2s.evaluation.records_labels import AgreementBin
from ensemw2s.evaluation.themes import Theme
from ensemw2s.evaluation.wording import SPLITS, label, number, pair, percent, systems_of

WIDTH = 4.4  # inches, of 100 CSS pixels each
DOTS_PER_INCH = 200

S = TypeVar("S")
Plot = Callable[[S, Theme], Figure | None]


def render(subject: S, theme: Theme, plots: Mapping[str, Plot[S]]) -> dict[str, bytes]:
    """Draws every plot that there are numbers for.

    Args:
        subject: What the plots are about.
        theme: Colours of paper and ink.
        plots: By name, functions that draw the subject or give None.

    Returns:
        PNG bytes by name. The same subject gives the same bytes.
    """
    images = {}
    with mpl.rc_context():
        mpl.rcdefaults()  # A matplotlibrc of the machine must not change a report.
        mpl.rcParams.update(_style(theme))
        for name, plot in plots.items():
            drawn = plot(subject, theme)
            if drawn is not None:
                buffer = io.BytesIO()
                FigureCanvasAgg(drawn).print_png(buffer, metadata={"Software": None})
                images[name] = buffer.getvalue()
    return images


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share (Wilson 1927), which keeps a width where a few of few are right."""
    z = 1.959964
    centre = (successes + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(successes * (n - successes) / n + z * z / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


def _systems(results: RunResults, theme: Theme) -> Figure | None:
    names = [
        name
        for name in systems_of(results)
        if any(number(results.metrics(name, split).exact_match) is not None for split in SPLITS)
    ]
    if not names:
        return None
    drawn, (axes,) = canvas(0.37 * len(names) + 0.55)
    for (split, title), colour, shift in zip(SPLITS.items(), (theme.id, theme.ood), (-0.19, 0.19), strict=True):
        shown = False
        for row, name in enumerate(names):
            found = results.metrics(name, split)
            if (value := number(found.exact_match)) is None:
                continue
            axes.barh(row + shift, value, 0.34, color=colour, alpha=0.85, label=None if shown else title)
            shown = True
            bounds = pair(found.ci95) or (value, value)
            axes.plot(bounds, [row + shift] * 2, color=theme.ink, linewidth=1.1, solid_capstyle="butt")
            # Inside the plot there is always room right of the whisker: the axis goes on to 1.16.
            axes.annotate(
                percent(value, ""), (max(bounds), row + shift), (4, 0), textcoords="offset points", va="center"
            )
    axes.set_yticks(range(len(names)), [label(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 1.16)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(False, axis="y")
    axes.grid(True, axis="x")
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(length=0)
    for text in axes.texts:
        text.set_fontsize(6.8)
    legend(axes)
    return drawn


def _rounds(results: RunResults, theme: Theme) -> Figure | None:
    rounds = results.curves.rounds
    series = {
        "validation": ("validation", theme.other, "^"),
        "id": ("ID", theme.id, "o"),
        "ood": ("OOD", theme.ood, "s"),
    }
    present = {key: numbers(results.curves.on(key), len(rounds)) for key in series}
    if not rounds or all(np.isnan(values).all() for values in present.values()):
        return None
    drawn, (axes,) = canvas(2.7)
    for key, (title, colour, marker) in series.items():
        if not np.isnan(present[key]).all():
            axes.plot(rounds, present[key], color=colour, marker=marker, label=title)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylim(0, 1)
    axes.set_ylabel("exact match")
    _round_axis(axes, rounds)
    legend(axes)
    return drawn


def _alpha(results: RunResults, theme: Theme) -> Figure | None:
    rounds = results.rounds
    if not rounds:
        return None
    at = [record.round for record in rounds]
    drawn, (top, bottom) = canvas(3.3, rows=2)
    voting = np.array([record.accepted for record in rounds])
    for axes, key in ((top, "alpha"), (bottom, "weighted_error")):
        for record in rounds:
            # A round of one expert has that expert's numbers: its dash would only thicken the round's dot.
            if len(record.experts) > 1:
                each = [getattr(expert, key) for expert in record.experts]
                axes.plot([record.round] * len(each), each, "_", color=theme.muted, markersize=9)
        values = np.array([getattr(record, key) for record in rounds], dtype=np.float64)
        axes.plot(at, values, color=theme.id, zorder=2)
        for chosen, face, title in ((voting, theme.id, "voting"), (~voting, theme.paper, "not voting")):
            if chosen.any():
                xs, ys = np.array(at)[chosen], values[chosen]
                axes.plot(xs, ys, "o", color=theme.id, markerfacecolor=face, markeredgewidth=1.2, label=title, zorder=3)
    reference = numbers([record.reference_error for record in rounds], len(rounds))
    if not np.isnan(reference).all():
        bottom.plot(at, reference, ":", color=theme.ood)
        # The error's panel has the line; the legend of both panels stands over the upper one.
        top.plot([], [], ":", color=theme.ood, label="reference error")
    top.set_ylabel("alpha")
    top.margins(y=0.12)
    top.axhline(0, color=theme.muted, linewidth=0.7)
    bottom.set_ylabel("weighted error")
    bottom.margins(y=0.12)
    bottom.set_ylim(bottom=0)
    top.tick_params(labelbottom=False)
    _round_axis(bottom, at)
    if not (voting.all() and np.isnan(reference).all()):
        legend(top)
    return drawn


def _weights(results: RunResults, theme: Theme) -> Figure | None:
    rounds = results.rounds
    if not rounds:
        return None
    at = [record.round for record in rounds]

    def of(key: str) -> np.ndarray:
        return np.array([getattr(record.weights, key) for record in rounds], dtype=np.float64)

    drawn, (top, bottom) = canvas(3.3, rows=2, ratios=(1.7, 1))
    lines = (("max", "v", ":"), ("p99", "s", "-"), ("p90", "D", "-"), ("p50", "o", "-"), ("min", "^", ":"))
    for shade, (key, marker, dashes) in zip((0.95, 0.8, 0.65, 0.5, 0.4), lines, strict=True):
        values = of(key)
        values[values <= 0] = np.nan
        if not np.isnan(values).all():
            title = {"p50": "median", "p90": "90 %", "p99": "99 %"}.get(key, key)
            axes_colour = theme.ood if shade > 0.6 else theme.id if shade > 0.45 else theme.other
            top.plot(at, values, dashes, marker=marker, markersize=3.5, color=axes_colour, label=title)
    top.set_yscale("log")
    top.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}×"))
    top.yaxis.set_minor_formatter(NullFormatter())
    lo, hi = top.get_ylim()
    top.set_ylim(min(lo, 0.8), max(hi, 1.25))
    top.set_ylabel("weight")
    top.tick_params(labelbottom=False)
    bottom.bar(at, of("effective_fraction"), 0.45, color=theme.other)
    bottom.set_ylim(0, 1)
    bottom.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    bottom.set_ylabel("effective share")
    _round_axis(bottom, at)
    legend(top)
    return drawn


def _agreement(results: RunResults, theme: Theme) -> Figure | None:
    binned: dict[str, list[tuple[AgreementBin, float]]] = {}
    for maker, made in results.labels.items():
        bins = [(b, right) for b in made.agreement_bins if b.n and (right := number(b.accuracy)) is not None]
        if bins:
            binned[maker] = bins
    if not binned:
        return None
    drawn, (top, bottom) = canvas(3.5, rows=2, ratios=(2, 1))
    top.plot([0, 1], [0, 1], "--", color=theme.muted, linewidth=0.8)
    order = sorted(binned, key=lambda maker: (maker not in TABLE or not TABLE[maker].ours, maker))
    looks = [(theme.id, "o"), (theme.ood, "s"), (theme.other, "^"), (theme.ink, "D")]
    for place, maker in enumerate(order):
        colour, marker = looks[place % len(looks)]
        bins = binned[maker]
        shift = (place - (len(order) - 1) / 2) * 0.014
        x = np.array([(b.lo + b.hi) / 2 for b, _ in bins]) + shift
        ends = np.array([wilson(b.n * right, b.n) for b, right in bins])
        top.vlines(x, ends[:, 0], ends[:, 1], color=colour, linewidth=1, alpha=0.7)
        top.plot(x, [right for _, right in bins], color=colour, marker=marker, label=label(maker))
        width = 0.8 * (bins[0][0].hi - bins[0][0].lo) / len(order)
        centre = (place - (len(order) - 1) / 2) * width
        bottom.bar(x - shift + centre, [b.n for b, _ in bins], width, color=colour, alpha=0.85)
        if len(order) == 1:
            for (b, _), where in zip(bins, x, strict=True):
                bottom.annotate(f"{b.n}", (where, b.n), (0, 2), textcoords="offset points", ha="center", fontsize=6.5)
            bottom.margins(y=0.2)
    for axes in (top, bottom):
        axes.set_xlim(0, 1)
    top.set_ylim(0, 1)
    top.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    top.set_ylabel("right")
    top.tick_params(labelbottom=False)
    bottom.set_ylabel("labels")
    bottom.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    bottom.set_xlabel("agreement of the experts")
    legend(top)
    return drawn


PLOTS: dict[str, Plot[RunResults]] = {
    "systems": _systems,
    "rounds": _rounds,
    "alpha": _alpha,
    "weights": _weights,
    "agreement": _agreement,
}


def canvas(height: float, rows: int = 1, ratios: tuple[float, ...] | None = None) -> tuple[Figure, list[Axes]]:
    """An empty figure of the reports' width, and its axes from top to bottom; `height` is in inches."""
    drawn = Figure(figsize=(WIDTH, height), dpi=DOTS_PER_INCH, layout="constrained")
    grid = drawn.subplots(rows, 1, squeeze=False, gridspec_kw={"height_ratios": ratios} if ratios else None)
    return drawn, list(grid[:, 0])


def _round_axis(axes: Axes, rounds: Sequence[int]) -> None:
    for each in axes.figure.get_axes():
        each.set_xlim(min(rounds) - 0.5, max(rounds) + 0.5)
        each.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, min_n_ticks=1))
    axes.set_xlabel("round")


def legend(axes: Axes) -> None:
    """Names of what was drawn, in a line above the axes."""
    handles, titles = axes.get_legend_handles_labels()
    if titles:
        axes.legend(
            handles,
            titles,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=len(titles),
            borderaxespad=0.1,
            borderpad=0.2,
        )


def numbers(values: Sequence[float | None], length: int) -> np.ndarray:
    """Floats with NaN for what is null, cut or filled up to `length`."""
    found = [number(v) for v in values[:length]]
    return np.array(
        [math.nan if v is None else v for v in found] + [math.nan] * (length - len(found)), dtype=np.float64
    )


def _style(theme: Theme) -> Any:
    return {
        "text.parse_math": False,
        "font.family": "DejaVu Sans",
        "font.size": 7.5,
        "text.color": theme.ink,
        "axes.labelcolor": theme.muted,
        "axes.edgecolor": theme.muted,
        "axes.facecolor": theme.paper,
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "figure.facecolor": theme.paper,
        "grid.color": theme.faint,
        "grid.linewidth": 0.7,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "lines.linewidth": 1.4,
        "lines.markersize": 4.5,
        "legend.frameon": False,
        "legend.handlelength": 1.4,
        "legend.columnspacing": 1.2,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "xtick.labelcolor": theme.ink,
        "ytick.labelcolor": theme.ink,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "xtick.minor.visible": False,
        "ytick.minor.width": 0.4,
    }
