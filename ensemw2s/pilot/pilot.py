"""A pilot: a config goes in, a small run of it is made, and what it says about the whole run comes out.

The small run is one like another: fewer examples, an expert for each weak base, and the strong model on easy examples
and on true answers. It is resumed and skipped as any run is, and its trainings tell how long the whole run takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from ensemw2s.cluster.connect import cluster_address
from ensemw2s.cluster.resources import local_resources
from ensemw2s.config import Config
from ensemw2s.config.systems import ENSEMW2S, SEQUENCE_VOTE, STUDENT_CEILING, STUDENT_EASY_ONLY
from ensemw2s.costs.here import on_this_machine
from ensemw2s.data.answers import answer_key
from ensemw2s.data.sources import allows_missing_answers
from ensemw2s.data.splits import make_splits
from ensemw2s.evaluation.records import RunResults
from ensemw2s.evaluation.voters import EXPERT
from ensemw2s.labeling.choice import unanimous
from ensemw2s.labeling.parts import read_labels
from ensemw2s.pilot.records import PILOT, Agreement, PilotResult
from ensemw2s.pipeline.build import build_graph
from ensemw2s.pipeline.plan import lay_out, parameters
from ensemw2s.pipeline.run import run as run_pipeline
from ensemw2s.pipeline.survey import survey
from ensemw2s.progress import Progress
from ensemw2s.storage.store import read_table

ENOUGH = 0.5
"""Share of the hard prompts whose true answers must be known for a ceiling."""


def pilot_config(config: Config, rows: int, *, ceiling: bool) -> Config:
    """The config of the small run.

    Args:
        config: That of the whole run.
        rows: Most examples of a split that a model learns from.
        ceiling: Whether true hard answers are known.
    """
    sizes, quarter, half = config.data.sizes, max(20, rows // 4), max(50, rows // 2)
    most = {"easy_train": rows, "easy_validation": quarter, "id_test": half, "hard_unlabelled": rows, "ood_test": half}
    smaller = {name: min(getattr(sizes, name), n) for name, n in most.items()} | {"hard_validation": 0}
    systems = [SEQUENCE_VOTE, ENSEMW2S, STUDENT_EASY_ONLY, *([STUDENT_CEILING] if ceiling else [])]
    changes: dict[str, dict[str, object]] = {
        "data": {"sizes": sizes.model_copy(update=smaller)},
        "boosting": {"rounds": max(2, len(config.models.weak)), "width": 1, "anchor": 1.0, "on_failure": "skip"},
        "consensus": {"passes": 0},
        "student": {"labels": "all", "generations": 1},
        "evaluation": {"systems": systems},
        "tracking": {"kind": "none"},
    }
    sections = {name: getattr(config, name).model_copy(update=values) for name, values in changes.items()}
    return config.model_copy(update={"name": f"{config.name}-pilot", "search": None, **sections})


def run(
    config: Config, rows: int, *, fresh: bool = False, debug: bool = False, progress: Progress | None = None
) -> PilotResult:
    """Makes the small run, or takes what is left of an earlier one, and says what it found.

    Args:
        config: That of the whole run; `preflight.check` has passed.
        rows: As in `pilot_config`.
        fresh: Delete what another config left in the pilot's folder.
        debug: Show the logs of Ray and of all workers.
        progress: Where to show progress; default: the terminal.
    """
    small = pilot_config(config, rows, ceiling=False)
    if _known(small) >= ENOUGH:
        small = pilot_config(config, rows, ceiling=True)
    results = run_pipeline(small, fresh=fresh, debug=debug, progress=progress, checked=True)
    graph = build_graph(small)
    answers = read_table(graph.evaluation.path / "answers.parquet")
    labels = read_labels(graph.labels[ENSEMW2S].path)
    seconds, time = whole_run(config)
    found = PilotResult(
        name=config.name,
        easy=small.data.sizes.easy_train,
        tests=small.data.sizes.ood_test,
        ensemble_easy=_right(results, ENSEMW2S, "id") or 0.0,
        ensemble=_right(results, ENSEMW2S) or 0.0,
        easy_only=_right(results, STUDENT_EASY_ONLY) or 0.0,
        ceiling=_right(results, STUDENT_CEILING),
        agreement=agreement(answers.to_pylist(), labels, small),
        seconds=seconds,
        time=time,
    )
    found.put_file(graph.root / PILOT)
    return found


def whole_run(config: Config) -> tuple[float | None, str]:
    """What is left of the whole run: seconds, if that can be said, and a sentence."""
    if cluster_address(config.cluster) is not None:
        return None, "`ensemw2s plan --cluster FILE` estimates the whole run on a cluster."
    graph = build_graph(config)
    plan = lay_out(graph, survey(graph), parameters(graph))
    here = on_this_machine(graph, plan, local_resources(config.cluster))
    if here is None:
        return 0.0, "The whole run is done already."
    return here.seconds, f"The whole run on this machine: {here.time_words()}."


def agreement(answers: Sequence[Mapping[str, str]], labels: pa.Table, config: Config) -> Agreement | None:
    """How often the experts agree.

    Args:
        answers: Rows of a run's answers.parquet.
        labels: The ensemble's labels of the hard prompts.
        config: That of the run.

    Returns:
        What is known; None where there are fewer than two experts.
    """
    key = answer_key(config.data.answer_match)
    hard = [row for row in answers if row["split"] == "ood"]
    experts = sorted({row["voter"] for row in hard if row["voter"].startswith(EXPERT)})
    if len(experts) < 2:
        return None
    said = {(row["voter"], row["id"]): key(row["answer"]) for row in hard}
    truths = {row["id"]: key(row["truth"]) for row in hard}
    same = {i for i in truths if len({said[expert, i] for expert in experts}) == 1}

    def share(voter: str, ids: set[str]) -> float | None:
        return sum(said[voter, i] == truths[i] for i in ids) / len(ids) if ids else None

    agreed = unanimous(labels)
    order = np.argsort([len(prompt) for prompt in labels["prompt"].to_pylist()], kind="stable")
    third = max(1, len(order) // 3)
    return Agreement(
        experts=len(experts),
        prompts=len(agreed),
        share=float(agreed.mean()),
        short=float(agreed[order[:third]].mean()),
        long=float(agreed[order[-third:]].mean()),
        tests=len(truths),
        tests_share=len(same) / len(truths),
        right=share(experts[0], same),
        right_others=share(ENSEMW2S, set(truths) - same),
    )


def _known(config: Config) -> float:
    """Share of the hard prompts whose true answers the source has."""
    hard = config.data.hard_source or config.data.source
    if not allows_missing_answers(config.data, hard):
        return 1.0
    answers = make_splits(config.data, seed=config.seed).hard_labels["answer"]
    return 1 - answers.null_count / len(answers)


def _right(results: RunResults, system: str, split: str = "ood") -> float | None:
    return results.metrics(system, split).exact_match
