"""Plots of a search as PNG files: metric against ensemble size, parallel coordinates, importance of each parameter."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ensemw2s.config import Config
from ensemw2s.config.search import Parameter
from ensemw2s.search.records import SearchResult, TrialRecord

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

DPI = 150

FEWEST = 4
"""Trials below which nothing can be said of importance."""


def write(config: Config, found: pd.DataFrame, result: SearchResult, folder: Path) -> None:
    """Writes sizes.png; and parallel.png and importance.png where at least two trials differ.

    Args:
        config: The search's config.
        found: `report.rows`.
        result: `report.summarise`.
        folder: Where; made if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sizes(found, result).savefig(folder / "sizes.png", dpi=DPI)
    study = study_of(config, result.trials)
    if len({trial.value for trial in study.trials}) < 2:
        return
    _draw(study, "plot_parallel_coordinate", folder / "parallel.png")
    if importances := importance(study):
        bars(importances).savefig(folder / "importance.png", dpi=DPI)


def sizes(found: pd.DataFrame, result: SearchResult) -> Figure:
    """The metric against rounds and then passes, a line for each trial, the best one in front."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for trial, history in found.groupby("trial"):
        measured = history[~history["final"].astype(bool)] if result.objective == "student" else history
        first = trial == result.best.trial
        axes.plot(
            measured["rounds"] + measured.get("passes", 0),
            measured["value"],
            marker="o",
            color="#0b6e8f" if first else "#9aa5ab",
            linewidth=2.2 if first else 1.0,
            zorder=3 if first else 2,
            label=f"trial {trial} (best)" if first else None,
        )
    axes.set_xlabel("boosting rounds" + (", then consensus passes" if result.best.passes is not None else ""))
    axes.set_ylabel(f"{result.metric} on {result.validation} validation")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return figure


def bars(importances: dict[str, float]) -> Figure:
    """Share of each parameter in what decides whether a trial is among the best."""
    figure = Figure(figsize=(7, 1.2 + 0.4 * len(importances)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    names = list(importances)[::-1]
    axes.barh(names, [importances[name] for name in names], color="#0b6e8f")
    axes.set_xlabel("importance (PED-ANOVA)")
    axes.set_xlim(0, 1)
    return figure


def importance(study: Study) -> dict[str, float]:
    """Importance of each parameter (PED-ANOVA, Watanabe et al. 2023, arXiv 2304.10255); empty if it cannot be told."""
    import optuna

    if len(study.trials) < FEWEST:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = optuna.importance.get_param_importances(
                study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
            )
        except (RuntimeError, ValueError):  # too few different values
            return {}
    return {name: float(value) for name, value in found.items()}


def study_of(config: Config, trials: Sequence[TrialRecord]) -> Study:
    """The trials as an Optuna study."""
    import optuna

    search = config.search
    assert search is not None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="minimize" if search.mode == "min" else "maximize")
    for trial in trials:
        able = {key: value for key, value in trial.point.items() if not isinstance(value, list)}
        study.add_trial(
            optuna.create_trial(
                params=able,
                distributions={key: distribution(search.space[key]) for key in able},
                value=trial.objective,
            )
        )
    return study


def distribution(parameter: Parameter) -> BaseDistribution:
    """A parameter of the space as Optuna's."""
    from optuna import distributions as d

    if parameter.choice is not None:
        return d.CategoricalDistribution(parameter.choice)
    if parameter.integer is not None:
        return d.IntDistribution(*parameter.integer)
    low, high = parameter.log_uniform or parameter.uniform or (0.0, 0.0)
    return d.FloatDistribution(low, high, log=parameter.log_uniform is not None)


def _draw(study: Study, name: str, file: Path) -> None:
    """One of Optuna's own plots."""
    from optuna.visualization import matplotlib as plots

    mpl.use("agg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure = getattr(plots, name)(study).figure
    figure.set_size_inches(9, 5)
    figure.savefig(file, dpi=DPI, bbox_inches="tight")
