"""What a finished cell says, as rows of study.parquet: one for each system and split, with cost and diagnosis.

The cell's evaluation folder goes in; nothing is computed here that a figure of a run does not say already, but the
choice of T on validation and what the labels cost.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from ensemw2s.config.systems import ENSEMW2S, EXPERT_SINGLE, GENERATIONS, TABLE
from ensemw2s.labeling.parts import read_labels
from ensemw2s.pipeline.graph import Graph
from ensemw2s.storage import store
from ensemw2s.study import diagnosis
from ensemw2s.study.cells import Cell
from ensemw2s.training.records import TrainRecord

Facts = dict[str, Any]

CHOSEN = "ensemw2s_chosen"
"""The ensemble of as many rounds as are best on validation; a row of its own beside the ensemble of all rounds."""

VALIDATION, HARD_VALIDATION = "validation", "hard_validation"
"""Where choices are made; the second one is there where `data.sizes.hard_validation` is."""

METRICS = ("exact_match", "forced_exact_match", "token_accuracy", "nll", "option_accuracy")
DIAGNOSIS = (
    "error_correlation",
    "both_wrong",
    "same_wrong",
    "all_same_wrong",
    "member_token_accuracy",
    "member_exact_match",
    "same_wrong_answer",
    "all_same_wrong_answer",
)
DIFFERENCES = ("student_minus_weak", "ceiling_minus_weak")

SCHEMA = pa.schema(
    [
        *((key, pa.string()) for key in ("study", "task", "variant")),
        ("seed", pa.int64()),
        *((key, pa.string()) for key in ("system", "split")),
        *((key, pa.float64()) for key in METRICS),
        ("ci95", pa.list_(pa.float64())),
        ("n", pa.int64()),
        *((key, pa.float64()) for key in ("tokens_trained", "supervision_trained", "tokens_labelled")),
        *((key, pa.float64()) for key in ("tokens_decoded", "train_seconds", "decode_seconds")),
        ("rounds", pa.int64()),
        ("curve_rounds", pa.list_(pa.int64())),
        ("curve", pa.list_(pa.float64())),
        *((key, pa.float64()) for key in ("pgr", *DIFFERENCES, "label_accuracy")),
        *((key, pa.float64()) for key in DIAGNOSIS),
        ("parameters", pa.int64()),
        ("fingerprint", pa.string()),
    ]
)


def of_cell(cell: Cell) -> list[Facts]:
    """The rows of a finished cell, with the columns of `SCHEMA`."""
    folder = cell.graph.evaluation.path
    results = store.read_json(folder / "results.json")
    own = {
        "study": cell.config.name,
        "task": cell.task,
        "variant": cell.variant,
        "seed": cell.seed,
        "fingerprint": results["config_fingerprint"],
    }
    together = diagnosis.of_table(store.read_table(folder / "forced.parquet"))
    for split, facts in diagnosis.of_answers(store.read_table(folder / "answers.parquet")).items():
        together["ensemw2s", split] = together.get(("ensemw2s", split), {}) | facts
    found = of_results(results, together, _tokens_labelled(cell.graph, results))
    sizes = _parameters(cell.graph)
    return [{**own, **row, "parameters": sizes.get(row["system"], sizes["expert_single"])} for row in found]


def of_results(results: Facts, together: dict[tuple[str, str], Facts], labelled: dict[str, int]) -> list[Facts]:
    """Rows of one run. Pure.

    Args:
        results: Its results.json.
        together: Voter and split → `diagnosis.diagnose`.
        labelled: Label maker → tokens that its members decoded for the pseudo-labels.

    Returns:
        Rows without the names of a cell.
    """
    curves, found = results["curves"], []
    for system, facts in results["systems"].items():
        metrics = {split: facts[split] for split in ("id", "ood")}
        for split in (VALIDATION, HARD_VALIDATION):
            if system in results.get(split, {}):
                metrics[split] = results[split][system]
        cost = _cost(system, results, labelled)
        for split, values in metrics.items():
            row = {"system": system, "split": split, "n": values["n"], "ci95": values["ci95"], **cost}
            row |= {key: values.get(key) for key in METRICS}
            row |= together.get((system, split), {})
            row |= _recovered((results["pgr"].get(system) or {}).get(split))
            if system == "ensemw2s" and split in curves:
                row |= {"rounds": (curves["rounds"] or [None])[-1]}
                row |= {"curve_rounds": curves["rounds"], "curve": curves[split]}
            found.append(row)
    return found + _chosen(results)


def chosen_rounds(validation: list[float]) -> int:
    """Place of the best value on validation, of equal ones the first: the smallest ensemble."""
    return max(range(len(validation)), key=lambda i: (validation[i], -i))


def _chosen(results: Facts) -> list[Facts]:
    """The ensemble whose T validation chose; all rounds had to be trained for the choice, so all are its cost.

    Ensembles of the first rounds do not decode, so its exact match is the teacher-forced one.
    """
    curves, cost = results["curves"], results["systems"]["ensemw2s"]["cost"]
    if not curves["rounds"]:
        return []
    at = chosen_rounds(curves[VALIDATION])
    sizes = {split: results["systems"]["ensemw2s"][split]["n"] for split in ("id", "ood")}
    sizes[VALIDATION] = results["validation"]["ensemw2s"]["n"]
    spent = {"tokens_trained": cost["tokens_trained"], "train_seconds": cost["train_seconds"]}
    return [
        {
            "system": CHOSEN,
            "split": split,
            "exact_match": curves[split][at],
            "forced_exact_match": curves[split][at],
            "n": n,
            "rounds": curves["rounds"][at],
            **spent,
        }
        for split, n in sizes.items()
    ]


def _cost(system: str, results: Facts, labelled: dict[str, int]) -> Facts:
    """What a system took; of the student of the last generation, all generations before count as its supervisors."""
    cost = results["systems"][system]["cost"]
    maker = TABLE[system].labels_by
    if maker is None:
        return dict(cost)
    earlier = results["generations"] if system == GENERATIONS else []
    makers = [maker, *(generation["name"] for generation in earlier)]
    trained = results["systems"][maker]["cost"]["tokens_trained"]
    return {
        **cost,
        "supervision_trained": trained + sum(generation["tokens_trained"] for generation in earlier),
        "tokens_labelled": sum(labelled[name] for name in makers),
        "label_accuracy": results["labels"][makers[-1]]["accuracy"],
    }


def _recovered(found: Facts | None) -> Facts:
    if found is None:
        return {}
    return {"pgr": found["value"], **{key: found[key]["difference"] for key in DIFFERENCES}}


def _tokens_labelled(graph: Graph, results: Facts) -> dict[str, int]:
    """Tokens that the members of each label maker decoded for its labels, every sample of every member."""
    voting = sum(expert["weight"] > 0 for entry in results["rounds"] for expert in entry["experts"])
    members = {ENSEMW2S: voting} | {name: len(experts) for name, experts in graph.baselines.items()}
    members |= {generation.name: len(generation.students) for generation in graph.generations}
    samples = graph.config.labeling.samples
    return {
        maker: sum(read_labels(stage.path)["n_tokens"].to_pylist()) * members[maker] * samples
        for maker, stage in graph.all_labels.items()
    }


def _parameters(graph: Graph) -> dict[str, int]:
    """Weights of each student and of the single expert, whose base is the first; experts of others may be smaller."""
    [single] = graph.baselines[EXPERT_SINGLE]
    models = {EXPERT_SINGLE: single.stage, **{student.name: student.stage for student in graph.students}}
    return {name: TrainRecord.read(stage.path).parameters for name, stage in models.items()}
