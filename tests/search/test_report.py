from types import SimpleNamespace

import pandas as pd
import pytest
from rich.console import Console

from ensemw2s.config import Config, load_config, parse_config
from ensemw2s.search import report
from ensemw2s.search.records import BestTrial, FailedTrial, SearchResult, read_result, write_result

from .test_space import TREE

SPACE = {
    "boosting.rounds": {"integer": [2, 3]},
    "expert.learning_rate": {"log_uniform": [1e-4, 1e-2]},
    "boosting.weighting": {"choice": ["loss", "bootstrap"]},
    "boosting.bootstrap": {"choice": ["count", "mask"], "when": {"boosting.weighting": "bootstrap"}},
}
POINTS = [
    {"expert.learning_rate": 1e-3, "boosting.weighting": "loss"},
    {"expert.learning_rate": 2e-3, "boosting.weighting": "bootstrap", "boosting.bootstrap": "mask"},
    {"expert.learning_rate": 3e-3, "boosting.weighting": "loss"},
    {"expert.learning_rate": 4e-3, "boosting.weighting": "loss"},
]


def row(rounds: int, value: float, objective: float, best: int, final: bool = False) -> dict:
    return {
        "rounds": rounds, "experts": rounds, "value": value, "exact_match": value, "token_accuracy": 0.9, "nll": 0.5,
        "objective": objective, "best_rounds": best, "seconds": 10.0 * rounds, "final": final, "training_iteration": 9,
    }  # fmt: skip


def result(point: dict, rows: list[dict], error: Exception | None = None) -> SimpleNamespace:
    return SimpleNamespace(config=point, metrics_dataframe=pd.DataFrame(rows) if rows else None, error=error)


@pytest.fixture
def grid() -> list[SimpleNamespace]:
    return [
        # size 1 is the best of all, but not among those that are searched
        result(POINTS[0], [row(1, 0.99, 0.99, 2), row(2, 0.5, 0.5, 2), row(3, 0.6, 0.6, 3, True)]),
        # begun again after a kill: the first sizes came twice
        result(POINTS[1], [row(1, 0.1, 0.1, 2), row(1, 0.1, 0.1, 2), row(2, 0.7, 0.7, 2), row(3, 0.7, 0.7, 2, True)]),
        result(POINTS[2], [row(1, 0.2, 0.2, 2)]),
        result(POINTS[3], [], RuntimeError("Traceback ...\n\nensemw2s.errors.BoostingError: no round gave")),
    ]


def config(tmp_path, **search) -> Config:
    (tmp_path / "x.jsonl").write_text("")
    return parse_config({**TREE, "search": {"space": SPACE, **search}})


def summary_of(made: Config, grid: list) -> tuple[pd.DataFrame, SearchResult]:
    results = dict(enumerate(grid))
    found = report.rows(results, made)
    return found, report.summarise(made, found, report.failures(results, found), dict(enumerate(POINTS)))


def test_every_trial_has_a_row_for_each_size(tmp_path, grid) -> None:
    found, summary = summary_of(config(tmp_path), grid)
    assert found[["trial", "rounds"]].values.tolist() == [[0, 1], [0, 2], [0, 3], [1, 1], [1, 2], [1, 3], [2, 1]]
    assert dict(zip(found["trial"], found["state"], strict=True)) == {0: "finished", 1: "finished", 2: "stopped"}
    assert found["boosting.bootstrap"].isna().tolist() == [True] * 3 + [False] * 3 + [True]
    assert summary.failed == [FailedTrial(trial=3, reason="BoostingError: no round gave", point=POINTS[3])]
    found.to_parquet(tmp_path / "trials.parquet")


def test_the_best_is_the_smallest_ensemble_of_the_highest_value_within_the_sizes(tmp_path, grid) -> None:
    made = config(tmp_path)
    _, summary = summary_of(made, grid)
    assert summary.best == BestTrial(trial=1, rounds=2, value=0.7, point=POINTS[1])
    best = report.best_config(made, summary.best)
    assert best.boosting.rounds == 2
    assert best.boosting.bootstrap == "mask"
    assert best.search is None
    assert best.name == "s-best"


def test_a_trial_without_a_vote_is_a_failure_with_its_reason_and_never_the_best(tmp_path) -> None:
    made = config(tmp_path, metric="nll")
    nothing = {**row(1, 0.01, 0.01, 2, True), "experts": 0, "reason": "no round gave an expert"}
    grid = [result(POINTS[0], [nothing]), result(POINTS[1], [{**row(2, 0.4, 0.4, 2, True), "reason": ""}])]
    found, summary = summary_of(made, grid)
    assert found["state"].tolist() == ["failed", "finished"]
    assert summary.failed == [FailedTrial(trial=0, reason="no round gave an expert", point=POINTS[0])]
    assert summary.best.trial == 1


def test_a_likelihood_is_the_better_the_lower(tmp_path, grid) -> None:
    _, summary = summary_of(config(tmp_path, metric="nll"), grid)
    assert summary.best.value == 0.5
    assert summary.best.trial == 0


def test_a_students_search_chooses_among_those_that_have_one(tmp_path) -> None:
    made = config(tmp_path, objective="student")
    grid = [
        result(POINTS[0], [row(2, 0.9, 0.9, 2)]),  # stopped: there was never a student
        result(POINTS[1], [row(2, 0.7, 0.7, 2), row(3, 0.6, 0.7, 2), row(3, 0.8, 0.8, 2, True)]),
    ]
    found, summary = summary_of(made, grid)
    assert len(found) == 4
    assert summary.best == BestTrial(trial=1, rounds=2, value=0.8, point=POINTS[1])


def test_files_and_table_are_written(tmp_path, grid) -> None:
    made = config(tmp_path)
    found, summary = summary_of(made, grid)
    report.write(made, found, summary, tmp_path)
    text = (tmp_path / "best.yaml").read_text()
    assert text.startswith("# Trial 1 of the search s: exact_match 0.7000 on easy validation examples, with 2 rounds.")
    assert load_config(tmp_path / "best.yaml") == report.best_config(made, summary.best)
    assert {path.name for path in (tmp_path / "plots").iterdir()} >= {"sizes.png", "parallel.png"}
    assert all(path.stat().st_size > 5000 for path in (tmp_path / "plots").iterdir())
    console = Console(record=True, width=160)
    write_result(tmp_path, summary)
    report.print_trials(read_result(tmp_path), console)
    shown = console.export_text()
    assert "trial 3 failed: BoostingError: no round gave" in shown
    assert "best: trial 1 with 2 rounds, exact_match 0.7000 on easy validation" in shown
    lines = [line.split()[0] for line in shown.splitlines() if line[:1].isdigit() or line.lstrip()[:1].isdigit()]
    assert lines == ["1", "0", "2"]


@pytest.mark.parametrize(("value", "said"), [(0.7, True), (0.6, False)])
def test_trials_that_tie_with_the_best_are_named(tmp_path, value, said) -> None:
    tied = [result(POINTS[0], [row(2, 0.7, 0.7, 2, True)]), result(POINTS[1], [row(2, value, value, 2, True)])]
    _, summary = summary_of(config(tmp_path), tied)
    console = Console(record=True, width=300)
    report.print_trials(summary, console)
    assert ("trial 0 ties with 1 more (1): their exact_match is the same" in console.export_text()) == said


def test_passes_are_a_size_too_and_best_yaml_has_the_number_that_was_measured(tmp_path) -> None:
    def measured(rounds: int, passes: int, value: float, final: bool = False) -> dict:
        return {**row(rounds, value, value, rounds, final), "passes": passes, "best_passes": passes}

    keys = {"boosting.rounds": {"integer": [2, 3]}, "consensus.passes": {"integer": [1, 2]}}
    made = config(tmp_path, space={**keys, "consensus.fraction": {"uniform": [0.1, 0.9]}})
    grid = [
        result({"consensus.fraction": 0.5}, [measured(3, 0, 0.9), measured(3, 1, 0.6), measured(3, 2, 0.6, True)]),
        result({"consensus.fraction": 0.7}, [measured(3, 0, 0.9), measured(3, 1, 0.5), measured(3, 2, 0.7, True)]),
    ]
    results = dict(enumerate(grid))
    found = report.rows(results, made)
    assert found[["trial", "passes"]].values.tolist() == [[t, p] for t in (0, 1) for p in (0, 1, 2)]
    summary = report.summarise(made, found, {}, {number: r.config for number, r in results.items()})
    assert (summary.best.trial, summary.best.rounds, summary.best.passes) == (1, 3, 2)
    assert [(t.passes, t.best_passes) for t in summary.trials] == [(2, 2), (2, 2)]
    best = report.best_config(made, summary.best)
    assert (best.boosting.rounds, best.consensus.passes, best.consensus.fraction) == (3, 2, 0.7)
    console = Console(record=True, width=200)
    report.print_trials(summary, console)
    shown = console.export_text()
    assert "3 + 2" in shown
    assert "best: trial 1 with 3 rounds and 2 passes" in shown
