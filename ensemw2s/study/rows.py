"""What a finished cell says, as rows of study.parquet: one for each system and split, with cost and diagnosis.

The cell's evaluation folder goes in; nothing is computed here that a figure of a run does not say already, but the
choice of T on validation and what the labels cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from ensemw2s.config.systems import (
    BASE_ENSEMBLE,
    ENSEMW2S,
    EXPERT_SINGLE,
    GENERATIONS,
    STUDENT_EASY_ONLY,
    TABLE,
)
from ensemw2s.evaluation.records import HARD_VALIDATION, RESULTS, VALIDATION, Metrics, RunResults
from ensemw2s.labeling.parts import read_labels
from ensemw2s.pipeline.graph import Graph
from ensemw2s.pipeline.specs import best_of
from ensemw2s.storage import store
from ensemw2s.study import diagnosis
from ensemw2s.study.cells import Cell
from ensemw2s.study.row import CommonErrors, StudyRow
from ensemw2s.training.records import TrainRecord

CHOSEN = "ensemw2s_chosen"
"""The ensemble of as many rounds as are best on validation; a row of its own beside the ensemble of all rounds."""

METRICS = ("exact_match", "forced_exact_match", "token_accuracy", "nll", "option_accuracy")
DIAGNOSIS = tuple(CommonErrors.model_fields)
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


def of_cell(cell: Cell) -> list[StudyRow]:
    """The rows of a finished cell."""
    folder = cell.graph.evaluation.path
    results = RunResults.read(folder / RESULTS)
    errors = {
        place: CommonErrors(**dict(found))
        for place, found in diagnosis.of_table(store.read_table(folder / "forced.parquet")).items()
    }
    for split, answers in diagnosis.of_answers(store.read_table(folder / "answers.parquet")).items():
        place = ENSEMW2S, split
        errors[place] = errors.get(place, CommonErrors()).model_copy(update=dict(answers))
    own = {
        "study": cell.config.name,
        "task": cell.task,
        "variant": cell.variant,
        "seed": cell.seed,
        "fingerprint": results.config_fingerprint,
    }
    sizes = _parameters(cell.graph)
    return [
        row.model_copy(update={**own, "parameters": sizes.get(row.system, sizes[EXPERT_SINGLE])})
        for row in of_results(results, errors, _tokens_labelled(cell.graph, results))
    ]


def of_results(
    results: RunResults, errors: Mapping[tuple[str, str], CommonErrors], labelled: Mapping[str, int]
) -> list[StudyRow]:
    """Rows of one run. Pure.

    Args:
        results: Its figures.
        errors: Voter and split → what the members' errors have in common.
        labelled: Label maker → tokens that its members decoded for the pseudo-labels.

    Returns:
        Rows without the names of a cell.
    """
    found = []
    for system, result in results.systems.items():
        measured = {
            "id": result.id,
            "ood": result.ood,
            VALIDATION: results.validation.get(system),
            HARD_VALIDATION: (results.hard_validation or {}).get(system),
        }
        bought = _cost(system, results, labelled)
        for split, metrics in measured.items():
            if metrics is not None:
                together = errors.get((system, split), CommonErrors())
                found.append(_row(results, system, split, metrics, {**bought, **dict(together)}))
    return found + _chosen(results)


def _row(results: RunResults, system: str, split: str, metrics: Metrics, more: Mapping[str, object]) -> StudyRow:
    values = {"system": system, "split": split, **dict(metrics), **more}
    if system == ENSEMW2S and split != HARD_VALIDATION:
        curves = results.curves
        values["rounds"] = curves.rounds[-1] if curves.rounds else None
        values |= {"curve_rounds": curves.rounds, "curve": curves.on(split)}
    if (recovered := results.recovered(system, split)) is not None:
        values |= {"pgr": recovered.value, **{key: getattr(recovered, key).difference for key in DIFFERENCES}}
    return StudyRow.model_validate(values)


def chosen_rounds(validation: Sequence[float | None]) -> int:
    """Place of the best value on validation, of equal ones the first: the smallest ensemble."""
    return max(range(len(validation)), key=lambda i: (validation[i], -i))


def _chosen(results: RunResults) -> list[StudyRow]:
    """The ensemble whose T validation chose; all rounds had to be trained for the choice, so all are its cost.

    Ensembles of the first rounds do not decode, so its exact match is the teacher-forced one.
    """
    curves, cost = results.curves, results.cost(ENSEMW2S)
    if not curves.rounds or cost is None:
        return []
    at = chosen_rounds(curves.validation)
    measured = {split: results.metrics(ENSEMW2S, split) for split in ("id", "ood")}
    measured[VALIDATION] = results.validation[ENSEMW2S]
    return [
        StudyRow(
            system=CHOSEN,
            split=split,
            exact_match=curves.on(split)[at],
            forced_exact_match=curves.on(split)[at],
            n=metrics.n,
            rounds=curves.rounds[at],
            tokens_trained=cost.tokens_trained,
            train_seconds=cost.train_seconds,
        )
        for split, metrics in measured.items()
    ]


def _cost(system: str, results: RunResults, labelled: Mapping[str, int]) -> dict[str, float | None]:
    """What a system took; of the student of the last generation, all generations before count as its supervisors."""
    cost, maker = results.cost(system), TABLE[system].labels_by if system in TABLE else None
    found: dict[str, float | None] = {} if cost is None else dict(cost)
    if maker is None:
        return found
    earlier = (results.generations or ()) if system == GENERATIONS else ()
    makers = [maker, *(generation.name for generation in earlier)]
    choice = (results.choices or {}).get(system)
    if choice is not None and choice.agreed is not None:  # the strong model was asked, and had to be trained for it
        makers = [STUDENT_EASY_ONLY, *(makers if choice.labels != "own" else [])]
    supervisors = [cost for name in makers if (cost := results.cost(name)) is not None]
    trained = sum(supervisor.tokens_trained for supervisor in supervisors)
    return found | {
        "supervision_trained": trained + sum(generation.tokens_trained for generation in earlier),
        "tokens_labelled": sum(labelled[name] for name in makers),
        "label_accuracy": results.labels[makers[-1]].accuracy if choice is None else choice.accuracy,
    }


def _tokens_labelled(graph: Graph, results: RunResults) -> dict[str, int]:
    """Tokens that the members of each label maker decoded for its labels, every sample of every member."""
    voting = sum(expert.weight > 0 for record in results.rounds for expert in record.experts)
    members = {ENSEMW2S: voting} | {
        name: len(experts) if TABLE[name].vote is not None else 1 for name, experts in graph.baselines.items()
    }
    members |= {generation.name: len(generation.students) for generation in graph.generations}
    members |= {BASE_ENSEMBLE: len({base.reference for base in graph.weak}), STUDENT_EASY_ONLY: 1}
    samples = graph.config.labeling.samples
    return {
        maker: sum(read_labels(stage.path)["n_tokens"].to_pylist()) * members[maker] * samples
        for maker, stage in graph.all_labels.items()
    }


def _parameters(graph: Graph) -> dict[str, int]:
    """Weights of each student and of the single expert; experts from other bases may be smaller."""
    single = best_of(graph.baselines[EXPERT_SINGLE])
    models = {EXPERT_SINGLE: single.stage, **{student.name: student.stage for student in graph.students}}
    return {name: TrainRecord.read(stage.path).parameters for name, stage in models.items()}
