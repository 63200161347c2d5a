"""Rows of a study with figures that can be followed by hand."""

from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from ensemw2s.config.systems import SYSTEMS_BEFORE as SYSTEMS
from ensemw2s.evaluation.records import VALIDATION
from ensemw2s.study.records import StudyFigures
from ensemw2s.study.rows import CHOSEN, SCHEMA
from ensemw2s.study.summary import summarise

EXACT = dict(zip((*SYSTEMS, CHOSEN), (50, 55, 56, 58, 57, 60, 30, 62, 64, 66, 90, 59), strict=True))
"""Exact match in per cent on ID, task a, seed 0. On OOD it is 10 points less."""


def row(system: str, split: str, exact: float, **values: Any) -> dict[str, Any]:
    own = {"study": "s", "task": "a", "variant": "default", "seed": 0, "system": system, "split": split}
    return {**own, "exact_match": exact, "forced_exact_match": exact, "n": 100, "fingerprint": "f", **values}


def rows_of(task: str, seed: int, variant: str = "default", lift: float = 0.0) -> list[dict[str, Any]]:
    """A cell: task b is 20 points lower; a seed adds a point; the ensemble has the seed's point twice, and the lift."""
    found = []
    for system, percent in EXACT.items():
        cost = {"tokens_trained": 1e6, "tokens_decoded": 2e5, "train_seconds": 10.0, "decode_seconds": 2.0}
        if system.startswith("student_"):
            cost |= {"supervision_trained": 3e6}
        for split in ("id", "ood", VALIDATION):
            if split == VALIDATION and system.startswith("student_"):
                continue
            value = (percent - 20 * (task == "b") - 10 * (split == "ood") + seed) / 100
            value += (seed / 100 + lift) if system == "ensemw2s" else 0.0
            values: dict[str, Any] = {"task": task, "seed": seed, "variant": variant, **cost}
            if system == "ensemw2s":
                values |= {"rounds": 2, "curve_rounds": [1, 2], "curve": [value - 0.05, value]}
                values |= {"error_correlation": 0.2 + seed / 10, "same_wrong": 0.5, "all_same_wrong": 0.1}
                values |= {"member_exact_match": value - 0.04 + seed / 100, "both_wrong": 0.2}
            if system == CHOSEN:
                values |= {"rounds": 1 + seed % 2}
            if system == "student_ensemw2s" and split != VALIDATION:
                values |= {"label_accuracy": 0.4 + seed / 10}
                defined = seed != 1
                values |= {"pgr": 0.3 if defined else None}
                values |= {"student_minus_weak": 0.11, "ceiling_minus_weak": 0.35 if defined else -0.01}
            found.append(row(system, split, value, **values))
    return found


def frame_of(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pa.Table.from_pylist(rows, schema=SCHEMA).to_pandas()


@pytest.fixture(scope="session")
def frame() -> pd.DataFrame:
    """Two tasks, three seeds, and a variant whose ensemble is two points better."""
    cells = [(task, seed) for task in ("a", "b") for seed in range(3)]
    rows = [r for task, seed in cells for r in rows_of(task, seed)]
    rows += [r for task, seed in cells for r in rows_of(task, seed, "better", 0.02)]
    return frame_of(rows)


@pytest.fixture(scope="session")
def summary(frame: pd.DataFrame) -> StudyFigures:
    """What `frame` says."""
    return summarise(frame, resamples=1000)
