"""What the stages without Ray leave: data, corpus, tokens, and the tables that students learn from."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ensemw2s.boosting.records import TrainingSpent
from ensemw2s.config import parse_config
from ensemw2s.data.splits import SPLITS
from ensemw2s.data.tokens import TokenData
from ensemw2s.ensemble.artifact import Ensemble
from ensemw2s.errors import DataError
from ensemw2s.evaluation.records import TrainingCost
from ensemw2s.labeling.choice import CHOSEN, Choice
from ensemw2s.labeling.parts import LABEL_SCHEMA, SOFT_FIELDS, write_part
from ensemw2s.models import tiny
from ensemw2s.models.loading import load_tokenizer
from ensemw2s.pipeline import steps
from ensemw2s.pipeline.build import build_graph
from ensemw2s.pipeline.specs import student_spec
from ensemw2s.storage import store
from ensemw2s.training.batches import read_training_set

from ..boosting.conftest import member

SIZES = {
    "easy_train": 12,
    "easy_validation": 5,
    "id_test": 5,
    "hard_unlabelled": 10,
    "ood_test": 5,
    "hard_validation": 0,
}


@pytest.fixture
def context(tmp_path):
    """Runs of one storage, on a file of sums whose hard rows (level 1) have a word in every answer."""
    rows = [{"prompt": f"{i} plus {i}", "answer": f"{'hard ' * (i >= 40)}{2 * i}", "level": i // 40} for i in range(80)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(name: str = "study", **sections: Any) -> Any:
        config = parse_config(
            {
                "name": name,
                "storage": str(tmp_path),
                "data": {
                    "source": {"kind": "files", "paths": [str(file)], "columns": {"difficulty": "level"}},
                    "split": {"mode": "difficulty", "difficulty_from": "column", "easy_max": 0},
                    "sizes": SIZES,
                },
                "models": {"weak": [{"base": "tiny-weak"}], "strong": {"base": "tiny-strong"}},
                **sections,
            }
        )
        return SimpleNamespace(config=config, graph=build_graph(config))

    return make


def prepared(run: Any) -> Any:
    """A run up to its tokens, with tokenizers where the bases would be."""
    steps.make_data(run)
    steps.make_corpus(run)
    for base in (*run.graph.weak, run.graph.strong):
        shutil.copytree(run.graph.corpus.stage.path / "tokenizer", base.path, dirs_exist_ok=True)
    steps.make_tokens(run)
    return run


def prompts(run: Any) -> list[dict[str, Any]]:
    return pq.read_table(run.graph.data.path / "hard_unlabelled.parquet").to_pylist()


def write_labels(run: Any, *, soft: bool = False, maker: str = "ensemw2s", **changes: dict[int, Any]) -> None:
    """Labels "0", "1", … of agreement 0, 1/10, …, with other values in some rows."""
    tokenizer = load_tokenizer(run.graph.strong.path)
    rows = []
    for i, prompt in enumerate(prompts(run)):
        row: dict[str, Any] = {"id": prompt["id"], "prompt": prompt["prompt"], "answer": str(i)}
        row |= {"agreement": i / 10, "finish_reason": "stop"}
        row |= {key: by_row[i] for key, by_row in changes.items() if i in by_row}
        row["token_ids"] = [*tokenizer.encode(" " + row["answer"], add_special_tokens=False), tokenizer.eos_token_id]
        row["n_tokens"] = len(row["token_ids"])
        if soft:
            row["top_tokens"] = [[t, 3] for t in row["token_ids"]]
            row["top_logprobs"] = [[np.log(0.75), np.log(0.25)]] * row["n_tokens"]
        rows.append(row)
    schema = pa.schema([*LABEL_SCHEMA, *(SOFT_FIELDS if soft else [])])
    folder = run.graph.labels[maker].path
    folder.mkdir(parents=True)
    for start in (0, 4, 8):
        write_part(pa.Table.from_pylist(rows[start : start + 4], schema=schema), folder / f"part-{start:010d}.parquet")


def student_table(run: Any, name: str = "student_ensemw2s") -> Path:
    [student] = [s for s in run.graph.students if s.name == name]
    steps.make_student_data(run, student)
    assert steps.done(student.data)
    return student.data.path / "train.parquet"


def answers(run: Any, path: Path) -> list[str]:
    tokenizer = load_tokenizer(run.graph.strong.path)
    return [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in TokenData.read(path).answer_ids]


def test_splits_are_files_and_hard_answers_lie_apart(context):
    run = context()
    steps.make_data(run)
    folder = run.graph.data.path
    assert sorted(p.name for p in folder.glob("*.parquet")) == sorted(f"{n}.parquet" for n in (*SPLITS, "hard_labels"))
    tables = {name: pq.read_table(folder / f"{name}.parquet") for name in SPLITS}
    assert {name: len(table) for name, table in tables.items()} == SIZES
    assert tables["hard_unlabelled"]["answer"].null_count == 10
    assert steps.done(run.graph.data)
    assert steps.read_splits(run).hard_labels.num_rows == 0, "what a stage does not read it cannot leak"


def test_the_corpus_has_a_table_for_each_role_and_a_tokenizer_without_hard_answers(context):
    run = context()
    steps.make_data(run)
    steps.make_corpus(run)
    folder = run.graph.corpus.stage.path
    assert {p.name for p in folder.glob("*.parquet")} == {"weak.parquet", "strong.parquet"}
    assert "hard" not in "".join(load_tokenizer(folder / "tokenizer").get_vocab())
    run = context("other", models={"weak": [{"base": "tiny-weak"}], "strong": {"base": "some/model"}})
    steps.make_data(run)
    steps.make_corpus(run)
    assert {p.name for p in run.graph.corpus.stage.path.glob("*.parquet")} == {"weak.parquet"}


def test_easy_examples_become_tokens_in_their_order(context):
    run = prepared(context())
    data = TokenData.read(run.graph.tokens.path / "easy_train.parquet")
    table = pq.read_table(run.graph.data.path / "easy_train.parquet")
    assert data.ids == table["id"].to_pylist()
    assert answers(run, run.graph.tokens.path / "easy_train.parquet") == table["answer"].to_pylist()


def test_a_student_learns_from_labels_and_easy_examples_beside(context):
    run = prepared(context(student={"objective": "xent"}))
    write_labels(run)
    easy = pq.read_table(run.graph.data.path / "easy_train.parquet")["answer"].to_pylist()
    assert answers(run, student_table(run)) == [*map(str, range(10)), *easy]
    assert answers(run, student_table(run, "student_easy_only")) == easy


def test_without_mixing_a_student_sees_labels_alone_and_the_easy_one_still_its_own(context):
    run = prepared(context(student={"mix_easy": False}))
    write_labels(run)
    assert answers(run, student_table(run)) == [*map(str, range(10))]
    assert len(answers(run, student_table(run, "student_easy_only"))) == 12


def test_labels_that_are_empty_or_were_cut_off_are_not_learned(context):
    run = prepared(context(student={"mix_easy": False}))
    write_labels(run, answer={2: ""}, finish_reason={5: "length"})
    assert answers(run, student_table(run)) == ["0", "1", "3", "4", "6", "7", "8", "9"]


def test_labels_of_the_highest_agreement_are_kept_in_their_order(context):
    run = prepared(context(student={"mix_easy": False, "keep_fraction": 0.3}))
    write_labels(run, agreement={0: 0.95, 9: 0.8, 8: 0.8})
    assert answers(run, student_table(run)) == ["0", "8", "9"]


def test_of_equal_agreement_the_first_labels_are_kept_and_one_at_least(context):
    run = prepared(context(student={"mix_easy": False, "keep_fraction": 0.01}))
    write_labels(run, agreement=dict.fromkeys(range(10), 1.0))
    assert answers(run, student_table(run)) == ["0"]


def test_no_usable_label_is_an_error_that_says_what_to_do(context):
    run = prepared(context())
    write_labels(run, finish_reason=dict.fromkeys(range(10), "length"))
    with pytest.raises(DataError, match=r"no label of ensemw2s can be used: .*labeling.max_new_tokens \(64\)"):
        student_table(run)


def test_bases_that_answer_nothing_leave_their_student_the_easy_examples_and_stop_no_run(context):
    run = prepared(context())
    write_labels(run, maker="base_ensemble", finish_reason=dict.fromkeys(range(10), "length"))
    assert len(answers(run, student_table(run, "student_base_ensemble"))) == 12


def test_a_student_may_learn_from_agreed_labels_alone_and_the_table_says_what_was_chosen(context):
    run = prepared(context(student={"labels": "agreed"}))
    write_labels(run)
    write_labels(run, maker="student_easy_only", answer={i: "x" for i in range(10) if i not in (2, 7)})
    table = student_table(run)
    assert answers(run, table)[:2] == ["2", "7"]
    assert len(answers(run, table)) == 14, "with the easy ones"
    choice = Choice.read(table.parent)
    assert (choice.kept, choice.agreed, choice.prompts) == (2, 2, 10)
    assert pq.read_table(table.parent / CHOSEN)["answer"].to_pylist() == ["2", "7"]


def test_labels_on_which_the_judges_differ_count_less_and_easy_examples_count_fully(context):
    run = prepared(context(student={"labels": "auto"}))
    write_labels(run)
    write_labels(run, maker="student_easy_only", answer=dict.fromkeys(range(5), "x"))
    data = read_training_set([str(student_table(run))], soft=False)
    assert data.weights is not None
    assert data.weights.tolist() == [0.5] * 5 + [1.0] * 17


def trained_students(run: Any) -> list[str]:
    """Trains the students of labels, where a training leaves what it learns from, and says which are trained."""
    trained: list[str] = []

    def train(specs: list[Any], priority: int = 0) -> None:
        for spec in specs:
            trained.append(spec.name)
            with store.publish(Path(spec.output), spec.fingerprint) as folder:
                (folder / "model.safetensors").write_bytes(Path(spec.tokens[0]).read_bytes())

    run.lanes, run.progress = SimpleNamespace(train=train), SimpleNamespace(say=lambda text: None)
    for student in run.graph.learning_from([None]):
        steps.make_student_data(run, student)
        train([student_spec(run.graph, student)])
    trained.clear()
    steps.train_students(run)
    return trained


@pytest.mark.parametrize("mixed", [True, False])
def test_where_both_judges_seldom_agree_the_student_of_auto_is_the_easy_only_one_without_a_training(context, mixed):
    systems = {"evaluation": {"systems": ["student_easy_only", "student_single", "student_ensemw2s"]}}
    run = prepared(context(student={"labels": "auto", "mix_easy": mixed}, **systems))
    easy, single, ours = run.graph.students
    write_labels(run)
    write_labels(run, maker="expert_single", answer=dict.fromkeys(range(9), "x"))
    write_labels(run, maker="student_easy_only", answer=dict.fromkeys(range(2, 10), "x"))
    assert trained_students(run) == [single.stage.name]
    choice = Choice.read(ours.data.path)
    assert (choice.easy_only, choice.kept, choice.agreed) == (True, 0, 2)
    weights = {student.name: (student.stage.path / "model.safetensors").read_bytes() for student in run.graph.students}
    assert weights[ours.name] == weights[easy.name] != weights[single.name]
    assert steps.done(ours.stage)
    assert (ours.data.path / "train.parquet").read_bytes() == (easy.data.path / "train.parquet").read_bytes()
    (easy.stage.path / "model.safetensors").unlink()
    assert trained_students(run) == [single.stage.name], "what is done already is left as it is"


def test_a_generation_of_easy_only_students_does_not_take_its_own_answers_for_agreement(context):
    systems = {"evaluation": {"systems": ["student_ensemw2s", "student_generations"]}}
    run = prepared(context(student={"labels": "auto", "generations": 2, "generation_width": 2}, **systems))
    [generation] = run.graph.generations
    write_labels(run)
    write_labels(run, maker="student_easy_only", answer=dict.fromkeys(range(10), "x"))
    shutil.copytree(run.graph.labels["student_easy_only"].path, generation.labels.path)
    assert trained_students(run) == []
    table = student_table(run, "student_generations")
    assert Choice.read(table.parent).easy_only
    assert len(answers(run, table)) == 12


def test_without_agreed_labels_a_student_learns_from_easy_examples_if_it_may(context):
    for mixed in (True, False):
        run = prepared(context(str(mixed), student={"labels": "agreed", "mix_easy": mixed}))
        write_labels(run)
        write_labels(run, maker="student_easy_only", answer=dict.fromkeys(range(10), "x"))
        if mixed:
            assert len(answers(run, student_table(run))) == 12
        else:
            with pytest.raises(DataError, match=r"student\.labels agreed keeps no label of ensemw2s"):
                student_table(run)


def test_soft_labels_keep_the_very_tokens_and_easy_examples_have_none(context):
    run = prepared(context(student={"objective": "soft"}, labeling={"soft_top_k": 2}))
    write_labels(run, soft=True)
    data = read_training_set([str(student_table(run))], soft=True)
    labelled = int(data.tokens.offsets[10])
    np.testing.assert_allclose(data.soft_probabilities[:labelled], [[0.75, 0.25]] * labelled, rtol=1e-3)
    np.testing.assert_allclose(data.soft_probabilities[labelled:, 0], 1.0)
    assert data.soft_ids[:, 0].tolist() == np.concatenate(data.tokens.answer_ids).tolist()
    assert len(data) == 22
    everything = read_training_set([str(student_table(run, "student_ceiling"))], soft=True)
    assert (everything.soft_probabilities[:, 0] == 1).all()


@pytest.mark.parametrize(("labels", "agreed"), [("all", 0), ("agreed", 3), ("own", 3), ("auto", 6), ("auto", 1)])
def test_only_the_ceiling_student_reads_hard_answers(context, labels, agreed):
    tables: list[dict[str, bytes]] = []
    for name in ("true", "corrupted"):
        run = prepared(context(name, student={"labels": labels}))
        write_labels(run)
        if labels != "all":
            write_labels(run, maker="student_easy_only", answer=dict.fromkeys(range(agreed, 10), "x"))
        if name == "corrupted":
            path = run.graph.data.path / "hard_labels.parquet"
            labels = pq.read_table(path)
            pq.write_table(labels.set_column(1, "answer", pa.array(["1"] * len(labels))), path)
        names = ("student_ensemw2s", "student_easy_only", "student_ceiling")
        tables.append({student: student_table(run, student).read_bytes() for student in names})
    assert {student for student in tables[0] if tables[0][student] != tables[1][student]} == {"student_ceiling"}


def test_later_generations_read_the_labels_of_the_one_before_and_no_hard_answer(context):
    systems = {"evaluation": {"systems": ["student_ensemw2s", "student_generations"]}}
    run = prepared(context(student={"mix_easy": False, "generations": 2, "generation_width": 2}, **systems))
    (run.graph.data.path / "hard_labels.parquet").unlink()
    write_labels(run)
    [generation] = run.graph.generations
    shutil.copytree(run.graph.labels["ensemw2s"].path, generation.labels.path)
    (generation.labels.path / "part-0000000008.parquet").unlink()
    first, second = generation.students
    assert first.data is second.data, "they differ in their seed alone"
    steps.make_student_data(run, first)
    assert answers(run, first.data.path / "train.parquet") == [*map(str, range(10))]
    assert answers(run, student_table(run, "student_generations")) == [*map(str, range(8))]


def test_students_of_a_generation_become_an_ensemble_of_equal_votes_before_the_next_are_trained(context):
    systems = {"evaluation": {"systems": ["student_generations"]}}
    run = prepared(context(student={"generations": 2, "generation_width": 2}, **systems))
    [generation] = run.graph.generations
    tokenizer = load_tokenizer(run.graph.strong.path)
    for student in generation.students:
        with store.publish(student.stage.path, student.stage.description) as folder:
            tiny.create_tiny("tiny-strong", tokenizer, student.seed).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    write_labels(run)
    shutil.copytree(run.graph.labels["ensemw2s"].path, generation.labels.path)
    store.finish(generation.labels.path, generation.labels.description)
    trained, shown = [], []
    run.lanes = SimpleNamespace(train=lambda specs: trained.extend(spec.name for spec in specs))
    run.stage = lambda name, what: shown.append(name) or nullcontext()
    steps.make_generations(run)
    ensemble = Ensemble.from_pretrained(generation.ensemble.path)
    assert [(m.name, m.alpha, m.weight) for m in ensemble.members] == [("student-0", 1, 1), ("student-1", 1, 1)]
    assert steps.done(generation.ensemble)
    assert trained == ["students/student_generations"]
    assert shown == ["generations/1"]


def test_the_ensemble_costs_what_experts_that_were_given_up_cost_too(context, older_training):
    run = context(boosting={"rounds": 2, "on_failure": "retry"}, evaluation={"systems": ["ensemw2s"]})
    first, second = run.graph.rounds
    counted = [first.experts[0].stage, second.retries[0].stage]
    for stage in counted:
        stage.path.mkdir(parents=True)
        older_training.model_copy(update={"tokens_trained": 100, "seconds": 2.0}).write(stage.path)
    members = [
        member(1, 1.0),
        member(2, 1.0, name=second.retries[0].stage.name, first_try=TrainingSpent(tokens_trained=30, seconds=0.5)),
    ]
    costs = steps._training_costs(run, members)
    assert costs["ensemw2s"] == costs["sequence_vote"] == TrainingCost(tokens_trained=230, train_seconds=4.5)


def test_the_ceiling_has_the_true_answers_to_the_very_prompts(context):
    run = prepared(context(student={"mix_easy": False}))
    path = student_table(run, "student_ceiling")
    expected = [f"{2 * int(p['prompt'].split()[0])}" for p in prompts(run)]
    assert [answer.split()[-1] for answer in answers(run, path)] == expected
    assert TokenData.read(path).ids == [p["id"] for p in prompts(run)]


def test_what_votes_were_fitted_on_judges_nobody():
    table = pa.table({"id": list("abcde"), "answer": list("12345")})
    kept, columns = steps._held_out(table, {"bagging": {"forced": [1, 2, 3, 4, 5], "nll": [0.1, 0.2, 0.3, 0.4, 0.5]}})
    assert kept["id"].to_pylist() == ["b", "d"]
    assert columns == {"bagging": {"forced": [2, 4], "nll": [0.2, 0.4]}}
