"""A run's results as the pipeline leaves them: one with everything, one with almost nothing."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemw2s.boosting.records import RoundRecord
from ensemw2s.evaluation.metrics import agreement_bins, metrics, paired_difference, pgr, verdict
from ensemw2s.storage.record import Record
from ensemw2s.storage.store import read_json

DRAW = {"samples": 500, "seed": 0}
ACCURACY = {
    "base_zero_shot": (0.71, 0.45),
    "expert_single": (0.68, 0.14),
    "expert_compute_matched": (0.80, 0.11),
    "bagging": (0.78, 0.23),
    "sequence_vote": (0.75, 0.20),
    "ensemw2s": (0.80, 0.25),
    "student_easy_only": (0.97, 0.04),
    "student_single": (0.95, 0.30),
    "student_bagging": (0.95, 0.38),
    "student_ensemw2s": (0.96, 0.56),
    "student_ceiling": (0.97, 0.92),
}
PAIRS = [
    *(("ensemw2s", rival) for rival in list(ACCURACY)[:5]),
    *(("student_ensemw2s", rival) for rival in ("student_easy_only", "student_single", "student_bagging")),
]


def plain(record: Record) -> dict[str, Any]:
    """As the file has it."""
    return record.model_dump(mode="json")


@pytest.fixture
def full(full_once: dict[str, Any]) -> dict[str, Any]:
    """A copy of the full run that a test may change."""
    return copy.deepcopy(full_once)


@pytest.fixture(scope="session")
def full_once() -> dict[str, Any]:
    """Every part of the contract, of a run whose ensemble beats one expert and does not beat all others."""
    rng = np.random.default_rng(0)
    n = 1000
    exact = {s: [rng.random(n) < p for p in accuracy] for s, accuracy in ACCURACY.items()}
    return {
        "name": "quickstart",
        "seed": 7,
        "config_fingerprint": "3f6c0e1b9a52",
        "task": {
            "source": "mine.jsonl",
            "split": "An example is easy if its level is at most 2, else hard.",
            "sizes": {"easy_train": 9, "hard_unlabelled": 8, "id_test": 1000, "ood_test": 1000},
            "easy": {"prompt": "sort 2 1 =", "answer": "1 2"},
            "hard": {"prompt": "sort 3 2 1 =", "answer": "1 2 3"},
        },
        "created": "2026-11-23T09:00:00+00:00",
        "versions": {"python": "3.11.9", "torch": "2.13.0", "ray": "2.60.0", "deepspeed": "0.19.8"},
        "systems": {s: _system(s, exact[s], rng) for s in ACCURACY},
        "pgr": {
            s: {
                split: plain(pgr(exact["expert_single"][i], exact[s][i], exact["student_ceiling"][i], **DRAW))
                for i, split in ((0, "id"), (1, "ood"))
            }
            for s in ("student_single", "student_bagging", "student_ensemw2s")
        },
        "comparisons": [
            _comparison(a, b, split, exact[a][i], exact[b][i]) for a, b in PAIRS for i, split in ((0, "id"), (1, "ood"))
        ],
        "rounds": [_round(t) for t in range(1, 6)],
        "curves": {
            "rounds": [1, 2, 3, 4, 5],
            "validation": [0.69, 0.74, 0.78, 0.80, 0.79],
            "id": [0.68, 0.73, 0.77, 0.79, 0.80],
            "ood": [0.14, 0.18, 0.21, 0.24, 0.25],
        },
        "labels": {
            maker: {
                "n": 2000,
                "accuracy": right,
                "agreement_bins": _bins(right, rng),
                "finish_reasons": {"stop": 1988, "length": 12},
            }
            for maker, right in (("ensemw2s", 0.26), ("bagging", 0.24))
        },
        "bases": {
            f"weak-{k}": {
                split: plain(metrics(rng.random(n) < p, **DRAW)) for split, p in (("id", 0.7 + k / 50), ("ood", 0.45))
            }
            for k in range(5)
        },
        "stages": [
            {"name": name, "seconds": s, "status": status}
            for name, s, status in (
                ("data", 3.1, "ran"),
                ("pretraining", 92.0, "reused"),
                ("rounds", 71.0, "ran"),
                ("labels", 8.4, "ran"),
                ("students", 64.2, "ran"),
                ("evaluation", 21.0, "ran"),
            )
        ],
        "total_seconds": 259.7,
        "examples": [_example(i, rng) for i in range(20)],
    }


@pytest.fixture
def minimal() -> dict[str, Any]:
    """What a run has that evaluated one system only, with nulls where there may be any."""
    figures = {"exact_match": 0.5, "token_accuracy": None, "nll": None, "n": 10, "ci95": [0.2, 0.8]}
    return {
        "name": "minimal",
        "seed": 0,
        "config_fingerprint": "00",
        "systems": {"expert_single": {"id": figures, "ood": None}},
        "pgr": {},
        "rounds": [],
    }


def _system(name: str, exact: list[np.ndarray], rng: np.random.Generator) -> dict[str, Any]:
    n = len(exact[0])
    found: dict[str, Any] = {}
    for split, right in zip(("id", "ood"), exact, strict=True):
        lengths = np.full(n, 6)
        wrong = rng.integers(1, 3, n) * ~right
        tokens = {} if name == "sequence_vote" else {"token_correct": lengths - wrong, "nll_sum": 0.4 + wrong * 0.9}
        found[split] = plain(metrics(right, n_tokens=lengths, **tokens, **DRAW))
    times = 5 if name in ("bagging", "ensemw2s", "sequence_vote", "expert_compute_matched") else 1
    found["cost"] = {
        "tokens_trained": 74_000 * times * (name != "base_zero_shot"),
        "train_seconds": 1.9 * times,
        "tokens_decoded": 13_000 * times,
        "decode_seconds": 1.1 * times,
    }
    return found


def _comparison(a: str, b: str, split: str, left: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    found = paired_difference(left, right, **DRAW)
    assert found.ci95 is not None
    return {"a": a, "b": b, "split": split, **plain(found), "verdict": verdict(*found.ci95)}


def _round(t: int) -> dict[str, Any]:
    error = 0.03 + 0.012 * t
    alpha = float(np.log((1 - error) / error))
    expert = {
        "name": f"rounds/{t}/experts/0",
        "base": f"weak-{t - 1}",
        "alpha": alpha,
        "weight": 0.2,
        "weighted_error": error,
        "error": 0.06,
        "train_loss": 0.21,
        "seconds": 1.7,
        "tokens_trained": 74_000,
    }
    spread = 1 + 0.8 * (t - 1)
    quantiles = {"min": 1 / spread, "p50": 1 / spread, "p90": 0.95, "p99": spread, "max": spread**2.2}
    return {
        "round": t,
        "alpha": alpha,
        "weighted_error": error,
        "accepted": True,
        "experts": [expert],
        "weights": quantiles | {"effective_fraction": 1 / spread**0.7},
        "reference_error": 0.09,
        "reset": False,
        "started": 100.0 * t,
        "finished": 100.0 * t + 9,
    }


def _bins(right: float, rng: np.random.Generator) -> list[dict[str, Any]]:
    agreement = 1 - rng.beta(1.2, 6, 2000)
    return [plain(b) for b in agreement_bins(agreement, rng.random(2000) < (agreement**6) * right * 2)]


def _example(i: int, rng: np.random.Generator) -> dict[str, Any]:
    numbers = rng.integers(0, 26, 5).tolist()
    answer = sorted(numbers)
    tokens = []
    for place, value in enumerate([*answer, "<eos>"]):
        dissent = int(rng.integers(0, 5)) if rng.random() < 0.3 else 0
        votes = [
            {"member": f"weak-{m}", "alpha": 2.9 - 0.2 * m, "token": f" {value if m >= dissent else place + 3}"}
            for m in range(5)
        ]
        agreement = sum(v["alpha"] for v in votes[dissent:]) / sum(v["alpha"] for v in votes)
        tokens.append({"text": f" {value}", "agreement": agreement, "votes": votes})
    right = i % 3 != 0
    text = " ".join(str(v) for v in answer)
    return {
        "id": f"{i:016x}",
        "prompt": f"Sort in ascending order: {' '.join(str(v) for v in numbers)} =",
        "truth": text if right else " ".join(str(v) for v in answer[::-1]),
        "answer": text,
        "correct": right,
        "agreement": float(np.mean([t["agreement"] for t in tokens])),
        "tokens": tokens,
    }


@pytest.fixture
def older_rounds() -> list[RoundRecord]:
    """The rounds of a run whose weighted errors are far from 0."""
    older = Path(__file__).parents[1] / "older_run"
    return [RoundRecord.model_validate(found) for found in read_json(older / "results.json")["rounds"]]
