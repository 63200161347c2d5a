"""Consensus passes: who answers, what is kept, what is trained on it, and when there is no pass."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ensemw2s.boosting.consensus import PassRecord
from ensemw2s.config import parse_config
from ensemw2s.evaluation.records import BySplit
from ensemw2s.labeling.parts import LABEL_SCHEMA, part_name, write_part
from ensemw2s.models import tiny
from ensemw2s.pipeline import anchoring, consensus
from ensemw2s.pipeline.build import build_graph
from ensemw2s.pipeline.graph import Round
from ensemw2s.pipeline.specs import expert_spec
from ensemw2s.pipeline.survey import survey
from ensemw2s.pipeline.systems import pass_voters
from ensemw2s.storage import store
from ensemw2s.training.batches import read_training_set

from ..boosting.conftest import expert_record, round_record

EASY, HARD = 20, 31


class Run:
    """A run whose members answer as written down, and whose rounds are only asked for."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.config = parse_config(
            {
                "name": "study",
                "storage": str(folder),
                "data": {"source": {"kind": "reasoning_gym", "dataset": "number_sorting"}},
                "models": {
                    "weak": [{"base": "tiny-weak", "pretraining_seed": seed} for seed in (0, 1)],
                    "strong": {"base": "tiny-strong"},
                },
                "boosting": {"rounds": 2},
                "evaluation": {"systems": ["ensemw2s"]},
                "consensus": {"passes": 2, "anchor": 0.5, "fraction": 0.2, "weight": 0.25, **changes},
            }
        )
        self.graph = build_graph(self.config)
        self.pool, self.progress = (
            None,
            SimpleNamespace(update=lambda *_: None, say=lambda text: self.said.append(text)),
        )
        self.said: list[str] = []
        self.asked: list[Any] = []
        self.rounds: list[str] = []
        self.easy_right, self.least = EASY, {"easy": 0.9, "hard": 0.9}
        self.sure, self.bases = {"easy": 3, "hard": 3}, {"easy": EASY, "hard": HARD}
        data = self.graph.data.path
        data.mkdir(parents=True)
        easy = [{"id": f"easy-{i}", "prompt": f"e{i}", "answer": "1 2 "} for i in range(EASY)]
        hard = [{"id": f"hard-{i}", "prompt": f"h{i}", "answer": None} for i in range(HARD)]
        pq.write_table(pa.Table.from_pylist(easy), data / "easy_validation.parquet")
        pq.write_table(pa.Table.from_pylist(hard), data / "hard_unlabelled.parquet")
        tiny.train_tokenizer(["1 2 3 e h"] * 9, 40).save_pretrained(self.graph.weak[0].path)

    def stage(self, name: str, what: str) -> Any:
        return nullcontext()

    def label_all(self, jobs: list[Any], **_: Any) -> None:
        for job in jobs:
            self.asked.append(job.voter)
            rows = [self.answer(job.voter, row) for row in pq.read_table(job.prompts).to_pylist()]
            write_part(pa.Table.from_pylist(rows, schema=LABEL_SCHEMA), job.output / part_name(0))

    def answer(self, voter: Any, row: dict[str, Any]) -> dict[str, Any]:
        kind, number = row["id"].split("-")
        text = "1 2" if kind == "hard" or int(number) < self.easy_right else "3"
        if voter.name == "bases" and int(number) >= self.bases[kind]:
            text = "2 2"
        if voter.name == "member-1" and kind == "hard" and int(number) % 2:
            text = "2 1"
        least = 0.95 if int(number) < self.sure[kind] else self.least[kind]
        return {**row, "answer": text, "finish_reason": "stop", "agreement": 0.99, "token_agreement": [1.0, least, 1.0]}

    def each_round(self, _: Any, rounds: tuple[Round, ...]) -> list[Any]:
        self.rounds += [r.stage.name for r in rounds]
        return []

    def record(self, number: int) -> PassRecord:
        return PassRecord.read(self.graph.passes[number - 1].kept.path)


@pytest.fixture
def make(tmp_path, monkeypatch) -> Any:
    def made(**changes: Any) -> Run:
        run = Run(tmp_path / str(len(list(tmp_path.iterdir()))), **changes)
        monkeypatch.setattr(anchoring, "label_all", run.label_all)
        monkeypatch.setattr(consensus, "each_round", run.each_round)
        monkeypatch.setattr(consensus, "finished_rounds", history)
        monkeypatch.setattr("ensemw2s.pipeline.systems.finished_rounds", history)
        return run

    return made


def history(_: Any, rounds: tuple[Round, ...]) -> list[Any]:
    """Records of rounds that all have a vote."""
    return [
        round_record(r.number, [1.0]).model_copy(
            update={"experts": (expert_record(r.number, 1.0, name=r.experts[0].stage.name),)}
        )
        for r in rounds
    ]


def test_every_pass_boosts_anew_on_what_the_members_of_the_one_before_agree_on(make) -> None:
    run = make()
    consensus.run_passes(run)
    assert run.rounds == [f"consensus/{p}/rounds/{t}" for p in (1, 2) for t in (1, 2)]
    assert [(voter.name, voter.anchor) for voter in run.asked] == [("ensemble", 0.5), ("bases", 0.0)] * 2
    assert "consensus/1/rounds/1/experts/0" in run.asked[2].models[0]
    assert "consensus" not in run.asked[0].models[0]
    record = run.record(1)
    assert (record.prompts, record.passing, record.kept) == (HARD, HARD, 6)
    assert (record.accuracy, record.best, record.threshold) == (1.0, 1.0, pytest.approx(0.9))
    assert run.said[0].startswith(f"  pass 1: 6 of {HARD} hard answers kept, {HARD} passed the gate")


def test_kept_answers_become_tokens_that_weigh_less(make) -> None:
    run = make()
    consensus.run_passes(run)
    kept = run.graph.passes[0].kept.path
    table = pq.read_table(kept / "kept.parquet").to_pylist()
    assert [row["id"] for row in table] == [f"hard-{i}" for i in range(6)]  # three of 0.95, then the first of equals
    assert {row["answer"] for row in table} == {"1 2"}
    expert = run.graph.passes[0].rounds[0].experts[0]
    spec = expert_spec(run.graph, expert)
    assert [Path(path).name for path in spec.tokens] == ["easy_train.parquet", "train.parquet"]
    found = read_training_set([spec.tokens[1]], soft=False)
    assert found.weights.tolist() == [0.25] * 6
    assert expert_spec(run.graph, run.graph.rounds[0].experts[0]).tokens == spec.tokens[:1]


def test_what_is_done_is_not_done_again(make) -> None:
    run = make()
    consensus.run_passes(run)
    asked = len(run.asked)
    consensus.run_passes(run)
    assert len(run.asked) == asked


def test_where_too_little_passes_there_is_no_pass_and_none_after_it(make) -> None:
    run = make()
    run.easy_right, run.least = 9, {"easy": 0.2, "hard": 0.3}  # the sure ones are right, and few where it is hard
    run.sure["easy"] = 9
    consensus.run_passes(run)
    assert run.rounds == []
    assert not run.record(1).took_place
    assert (run.record(1).threshold, run.record(1).passing) == (pytest.approx(0.95), 3)
    assert run.said[0].startswith(f"  pass 1: no pass, because 3 of {HARD} hard answers pass the gate")
    assert anchoring.final_rounds(run.graph) == run.graph.rounds


def test_answers_that_the_untuned_bases_do_not_give_do_not_pass(make) -> None:
    run = make(passes=1)
    run.bases["hard"] = 5
    consensus.run_passes(run)
    record = run.record(1)
    assert (record.judge, record.seconded, record.passing) == ("bases", 5 / HARD, 5)
    kept = pq.read_table(run.graph.passes[0].kept.path / "kept.parquet")["id"].to_pylist()
    assert kept == [f"hard-{i}" for i in range(5)]
    assert "easy validation answers that the untuned bases give, too," in run.said[0]


def test_bases_that_know_nothing_are_no_judge_and_the_gate_is_stricter(make) -> None:
    run = make(passes=1)
    run.bases = {"easy": 1, "hard": 0}  # of 20 that the ensemble has right
    consensus.run_passes(run)
    record = run.record(1)
    assert (record.judge, record.seconded, record.needed) == ("none", None, 0.95)
    assert not record.took_place  # 20 of 20 answers do not show that 90 % are right


def test_who_judges_can_be_set(make) -> None:
    run = make(passes=1, judge="none")
    consensus.run_passes(run)
    assert [voter.name for voter in run.asked] == ["ensemble"]
    run = make(passes=1, judge="bases")
    run.bases = {"easy": 0, "hard": 0}
    consensus.run_passes(run)
    assert (run.record(1).judge, run.record(1).passing, run.record(1).threshold) == ("bases", 0, None)


def test_hard_answers_are_not_read_whatever_stands_there(make) -> None:
    run = make()
    consensus.run_passes(run)
    other = make()
    path = other.graph.data.path / "hard_unlabelled.parquet"
    table = pq.read_table(path).to_pylist()
    pq.write_table(pa.Table.from_pylist([{**row, "answer": "3 3 3"} for row in table]), path)
    (other.graph.data.path / "hard_labels.parquet").write_bytes(b"not to be read")
    consensus.run_passes(other)
    for name in ("kept.parquet", "train.parquet"):
        one, two = (pq.read_table(r.graph.passes[0].kept.path / name) for r in (run, other))
        assert one.equals(two)


def test_agreement_of_whole_answers_asks_every_member(make) -> None:
    run = make(agreement="answer", passes=1)
    consensus.run_passes(run)
    assert [voter.name for voter in run.asked] == ["ensemble", "bases", "member-0", "member-1"]
    assert [len(voter.models) for voter in run.asked] == [2, 2, 1, 1]
    assert run.record(1).threshold == 1.0
    assert run.record(1).passing == (HARD + 1) // 2
    kept = pq.read_table(run.graph.passes[0].kept.path / "kept.parquet")["id"].to_pylist()
    assert kept == [f"hard-{2 * i}" for i in range(6)]


def test_the_ensemble_is_that_of_the_last_pass_and_those_before_are_evaluated_too(make) -> None:
    run = make()
    consensus.run_passes(run)
    assert anchoring.final_rounds(run.graph) == run.graph.passes[1].rounds
    voters = pass_voters(run.graph)
    assert [voter.name for voter in voters] == ["passes:0", "passes:1"]
    assert "consensus/1/" in voters[1].models[0]
    figures = SimpleNamespace(of_voter=lambda voter: BySplit() if voter else None, key=str.strip)
    truths = pa.table(
        {"id": [f"hard-{i}" for i in range(HARD)], "answer": ["1 2"] * 3 + [None] * 2 + ["2"] * (HARD - 5)}
    )
    found = consensus.pass_results(run.graph, figures, truths)  # type: ignore[arg-type]
    assert [p.number for p in found] == [0, 1, 2]
    assert found[1].right == 0.75  # three of the four whose answer is known
    assert found[0].record is None


def test_after_a_pass_auto_leaves_the_members_as_they_are(make, monkeypatch) -> None:
    run = make(passes=1)
    config = run.config.model_copy(update={"boosting": run.config.boosting.model_copy(update={"anchor": "auto"})})
    graph = build_graph(config)
    monkeypatch.setattr(anchoring, "found_anchor", lambda _: 0.25)
    assert anchoring.scale_of(graph) == 0.25
    consensus.run_passes(run)
    assert anchoring.scale_of(run.graph) == 1.0
    made = graph.passes[0].kept
    store.remove_partial(made.path)
    monkeypatch.setattr(anchoring, "passes_made", lambda g: list(g.passes))
    assert anchoring.scale_of(graph) == 1.0
    assert anchoring.scale_of(graph, graph.rounds) == 0.25


def test_a_plan_says_which_stages_a_gate_makes_needless(make) -> None:
    run = make()
    run.easy_right = 0
    consensus.run_passes(run)
    found = survey(run.graph)
    assert found["consensus/1/kept"].state == "done"
    assert {found[f"consensus/1/rounds/{t}"].state for t in (1, 2)} == {"not needed"}
    assert found["consensus/2/answers"].detail == "too few hard answers passed the gate of pass 1"
