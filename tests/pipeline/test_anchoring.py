"""The search for an anchor as a stage, and the voters that it anchors."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ensemw2s.boosting.anchors import ANCHORS
from ensemw2s.boosting.records import AnchorSearch
from ensemw2s.config import parse_config
from ensemw2s.ensemble.anchor import Anchor
from ensemw2s.labeling.parts import LABEL_SCHEMA, part_name, write_part
from ensemw2s.pipeline import anchoring
from ensemw2s.pipeline.build import build_graph
from ensemw2s.pipeline.systems import groups
from ensemw2s.storage import remote, store

from ..boosting.conftest import member, round_record

MEMBERS = [member(1, 1.0), member(2, 2.0)]


def run_of(folder: Path, anchor: Any) -> Any:
    config = parse_config(
        {
            "name": "study",
            "storage": str(folder),
            "data": {"source": {"kind": "reasoning_gym", "dataset": "number_sorting"}},
            "models": {
                "weak": [{"base": "tiny-weak", "pretraining_seed": seed} for seed in (0, 1)],
                "strong": {"base": "tiny-strong"},
            },
            "boosting": {"rounds": 2, "anchor": anchor},
            "labeling": {"samples": 3, "temperature": 1.0},
            "evaluation": {"systems": ["ensemw2s", "sequence_vote", "base_ensemble"]},
        }
    )
    progress = SimpleNamespace(update=lambda *_: None, say=lambda _: None)
    return SimpleNamespace(config=config, graph=build_graph(config), pool=None, progress=progress)


@pytest.fixture
def answering(monkeypatch) -> list[Any]:
    """Answers in place of the pool: below 0.5 two of four validation answers are right, from there on three."""
    asked: list[Any] = []

    def label_all(jobs: list[Any], *, labeling: Any, **_: Any) -> None:
        for job in jobs:
            asked.append((job.voter, labeling, pq.read_table(job.prompts)))
            right = 2 if job.voter.anchor < 0.5 else 3
            rows = []
            for row in asked[-1][2].to_pylist():
                kind, number = row["id"].split("-")
                answer = "yes" if kind == "easy" and int(number) < right else "no"
                rows.append({**row, "answer": answer, "agreement": 1 - job.voter.anchor / 2 if kind == "hard" else 0.0})
            write_part(pa.Table.from_pylist(rows, schema=LABEL_SCHEMA), job.output / part_name(0))

    monkeypatch.setattr(anchoring, "label_all", label_all)
    monkeypatch.setattr(anchoring, "finished_rounds", lambda *_: [round_record(1, [1.0]), round_record(2, [2.0])])
    return asked


def prepare(run: Any) -> Path:
    folder: Path = run.graph.data.path
    folder.mkdir(parents=True)
    easy = [{"id": f"easy-{i}", "prompt": f"e{i}", "answer": " yes "} for i in range(4)]
    hard = [{"id": f"hard-{i}", "prompt": f"h{i}", "answer": None} for i in range(3)]
    pq.write_table(pa.Table.from_pylist(easy), folder / "easy_validation.parquet")
    pq.write_table(pa.Table.from_pylist(hard), folder / "hard_unlabelled.parquet")
    return folder


def test_every_anchor_is_tried_greedily_and_only_the_curve_and_the_choice_stay(answering, tmp_path) -> None:
    run = run_of(tmp_path, "auto")
    prepare(run)
    anchoring.find_anchor(run)
    assert [voter.anchor for voter, *_ in answering] == list(ANCHORS)
    assert {(labeling.samples, labeling.temperature) for _, labeling, _ in answering} == {(1, 0.0)}
    found = AnchorSearch.read(run.graph.anchor.path)
    assert (found.anchor, found.easy, found.hard, found.bases_know) == (0.5, 4, 3, True)
    assert [(p.accuracy, p.agreement) for p in found.curve][3:5] == [(0.5, 0.8125), (0.75, 0.75)]
    assert store.is_done(run.graph.anchor.path, run.graph.anchor.description)
    assert remote.names(run.graph.anchor.path) == {"anchor.json", ".complete.json"}
    assert anchoring.scale_of(run.graph) == 0.5


def test_members_and_prefixes_and_the_vote_of_answers_are_anchored_to_their_own_bases(tmp_path) -> None:
    run = run_of(tmp_path, 0.25)
    voters = {voter.name: voter for group in groups(run.graph, MEMBERS) for voter in group.voters}
    own = [base.reference for base in run.graph.weak]
    assert (voters["ensemw2s"].anchor, voters["ensemw2s"].bases) == (0.25, own)
    assert voters["expert:rounds/2/experts/0"].bases == own[1:]
    assert voters["base_ensemble"].anchor == 1
    assert voters["ensemw2s"].members()[1][1] == Anchor(own[1], 0.25)


def test_without_an_anchor_no_base_is_read(tmp_path) -> None:
    run = run_of(tmp_path, 1.0)
    voter = anchoring.anchored_voter(run.graph, MEMBERS, "ensemble", anchoring.scale_of(run.graph))
    assert voter.bases == []
    assert [anchor.scale for _, anchor in voter.members()] == [1.0, 1.0]
    assert anchoring.anchors_of(run.graph, MEMBERS, 1.0) == []
