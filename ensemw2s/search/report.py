"""What a search found: Tune's results come in; rows, the best point as a config, a table and plots go out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ensemw2s.config import Config, dump_config
from ensemw2s.config.search import SearchConfig
from ensemw2s.search import plots, space
from ensemw2s.search.records import OBJECTIVE, BestTrial, FailedTrial, Measurement, SearchResult, TrialRecord
from ensemw2s.storage import remote

COLUMNS = tuple(Measurement.model_fields)
SHOWN = 20


def rows(results: Mapping[int, Any], config: Config) -> pd.DataFrame:
    """One row for each trial and size.

    Args:
        results: Number of a trial → Tune's result; see `live.numbered`.
        config: The search's config.

    Returns:
        Columns `trial` (number, from 0), `state` (finished, stopped, failed), the fields of `Measurement` that were
        measured, and one for each key of the space (null where its conditions did not hold; lists and mixed types as
        JSON).
    """
    assert config.search is not None
    found: list[dict[str, object]] = []
    for number, result in results.items():
        history = result.metrics_dataframe
        if history is None or not len(history):
            continue
        known = [key for key in COLUMNS if key in history]
        # a trial that was started again measured its first sizes twice
        size = [key for key in ("rounds", "passes", "final") if key in known]
        history = history[known].drop_duplicates(size, keep="last").sort_values(size)
        last = history.iloc[-1]
        broken = result.error is not None or (isinstance(last.get("reason"), str) and last["reason"])
        state = "failed" if broken else "finished" if last["final"] else "stopped"
        found += [
            {"trial": number, "state": state, **measured, **_point(result.config, config.search)}
            for measured in history.to_dict("records")
        ]
    return pd.DataFrame(found)


def _point(drawn: space.Point, search: SearchConfig) -> space.Point:
    return {
        key: _plain(drawn.get(key), parameter.extremes)
        for key, parameter in search.space.items()
        if key not in space.NESTED
    }


def _plain(value: Any, values: list[Any]) -> Any:
    mixed = len({type(v) for v in values}) > 1 and not all(isinstance(v, int | float) for v in values)
    return json.dumps(value) if value is not None and (mixed or isinstance(value, list)) else value


def failures(results: Mapping[int, Any], found: pd.DataFrame) -> dict[int, str]:
    """Number and reason of the trials that failed, and of those in which no expert came to a vote."""
    broken = {number: _reason(result.error) for number, result in results.items() if result.error is not None}
    if "reason" in found:
        said = found[found["reason"].fillna("") != ""]
        broken |= dict(zip(said["trial"].tolist(), said["reason"].tolist(), strict=True))
    return dict(sorted(broken.items()))


def _reason(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).removeprefix("ensemw2s.errors.")


def summarise(
    config: Config, found: pd.DataFrame, failed: dict[int, str], points: dict[int, space.Point]
) -> SearchResult:
    """What the search found.

    Args:
        config: The search's config.
        found: `rows`.
        failed: `failures`.
        points: Each trial's point.
    """
    search = config.search
    assert search is not None
    trials, passing = [], space.searches_passes(config)
    for number, history in found.groupby("trial"):
        last = history.iloc[-1]
        trials.append(
            TrialRecord(
                trial=int(number),
                state=last["state"],
                rounds=int(last["rounds"]),
                passes=int(last["passes"]) if passing else None,
                objective=float(last[OBJECTIVE]),
                best_rounds=int(last["best_rounds"]),
                best_passes=int(last["best_passes"]) if passing else None,
                seconds=round(float(last["seconds"]), 1),
                point=points[int(number)],
            )
        )
    return SearchResult(
        name=config.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        objective=search.objective,
        metric=search.metric,
        mode=search.mode,
        validation=search.validation,
        best=_best(found, config, points),
        trials=trials,
        failed=[FailedTrial(trial=number, reason=reason, point=points[number]) for number, reason in failed.items()],
    )


def _best(found: pd.DataFrame, config: Config, points: Mapping[int, space.Point]) -> BestTrial:
    """The best value; of equal ones the smaller ensemble's, then that of fewer passes, then the earlier trial's."""
    search = config.search
    assert search is not None
    passing = space.searches_passes(config)
    if not passing:
        found = found.assign(passes=0, best_passes=0)
    prefix = ""
    if search.objective == "student":
        able = found[found["final"].astype(bool)]
        prefix = "best_"
    else:
        (least, most), (fewest, _) = space.sizes(config), space.passes(config)
        sized = (found["rounds"] >= least) & (found["rounds"] <= most)
        able = found[(found["passes"] >= fewest) & (sized | (found["passes"] > 0))]
    voted = able[able["experts"] > 0]
    able = voted if len(voted) else found
    size = [f"{prefix}rounds", f"{prefix}passes"]
    order = able.sort_values(["value", *size, "trial"], ascending=[search.mode == "min", True, True, True])
    first = order.iloc[0]
    trial = int(first["trial"])
    return BestTrial(
        trial=trial,
        rounds=int(first[size[0]]),
        passes=int(first[size[1]]) if passing else None,
        value=float(first["value"]),
        point=points[trial],
    )


def best_config(config: Config, best: BestTrial) -> Config:
    """The search's config at its best point, for `ensemw2s run`."""
    plain = config.model_copy(update={"search": None, "name": f"{config.name}-best"})
    passes = {space.PASSES: best.passes} if best.passes is not None else {}
    return space.apply(plain, {**best.point, space.ROUNDS: best.rounds, **passes})


def _size(best: BestTrial) -> str:
    """A size in words: 3 rounds and 2 passes."""
    return f"{best.rounds} rounds" + (f" and {best.passes} passes" if best.passes is not None else "")


def write(config: Config, found: pd.DataFrame, result: SearchResult, folder: Path) -> None:
    """Writes best.yaml and plots/."""
    best = result.best
    said = (
        f"# Trial {best.trial} of the search {config.name}: {result.metric} {best.value:.4f} on "
        f"{result.validation} validation examples, with {_size(best)}.\n"
    )
    (folder / "best.yaml").write_text(said + dump_config(best_config(config, best)), encoding="utf-8")
    plots.write(config, found, result, folder / "plots")
    for made in ("best.yaml", "plots"):
        remote.push(folder / made)


def print_trials(result: SearchResult, console: Console) -> None:
    """The best trials as a table, then the best point and where it lies."""
    sign = 1 if result.mode == "min" else -1
    ordered = sorted(result.trials, key=lambda t: (sign * t.objective, t.best_rounds, t.trial))
    keys = list(dict.fromkeys(key for trial in ordered for key in trial.point))
    table = Table(box=None, pad_edge=False)
    for name in ("trial", "state", "rounds", result.metric, "best size", "seconds", *keys):
        table.add_column(name, justify="left" if name == "state" else "right")
    for trial in ordered[:SHOWN]:
        values = [_short(trial.point.get(key, "")) for key in keys]
        table.add_row(
            str(trial.trial), trial.state, _with_passes(trial.rounds, trial.passes), f"{trial.objective:.4f}",
            _with_passes(trial.best_rounds, trial.best_passes), f"{trial.seconds:.0f}", *values,
        )  # fmt: skip
    console.print(table)
    if result.best.passes is not None:
        console.print(Text("4 + 2 are four boosting rounds, and two consensus passes of as many"))
    for failed in result.failed:
        console.print(Text(f"trial {failed.trial} failed: {failed.reason}"))
    best = result.best
    console.print(
        Text(
            f"\nbest: trial {best.trial} with {_size(best)}, {result.metric} {best.value:.4f} on "
            f"{result.validation} validation"
        )
    )
    tied = [str(trial.trial) for trial in ordered if trial.objective == best.value and trial.trial != best.trial]
    if tied:
        console.print(
            Text(
                f"trial {best.trial} ties with {len(tied)} more ({', '.join(tied[:SHOWN])}): their {result.metric} is "
                "the same. Of these the smaller ensemble was taken, then the earlier trial; more validation examples, "
                "or harder ones, tell them apart"
            )
        )


def _with_passes(rounds: int, passes: int | None) -> str:
    return f"{rounds} + {passes}" if passes else str(rounds)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) and math.isfinite(value) else str(value)
