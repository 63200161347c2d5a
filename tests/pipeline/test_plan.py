"""What a plan says, from graphs of small configs and stages that are put on disk as a run would."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ensemw2s.cluster.resources import DRIVER, Node, Resources, plan_resources
from ensemw2s.config import Config, parse_config
from ensemw2s.pipeline.build import build_graph
from ensemw2s.pipeline.graph import Graph
from ensemw2s.pipeline.plan import Plan, lay_out, parameters, resources_for
from ensemw2s.pipeline.plan_print import print_plan
from ensemw2s.pipeline.survey import StageState, survey
from ensemw2s.storage import store
from ensemw2s.storage.store import Stage

from ..boosting.conftest import round_record


def config(tmp_path: Path, **changes: Any) -> Config:
    tree: dict[str, Any] = {
        "name": "study",
        "storage": str(tmp_path / "runs"),
        "data": {
            "source": {"kind": "reasoning_gym", "dataset": "number_sorting"},
            "sizes": {
                "easy_train": 100,
                "easy_validation": 20,
                "id_test": 30,
                "hard_unlabelled": 200,
                "ood_test": 40,
            },
        },
        "models": {
            "weak": [{"base": "tiny-weak", "pretraining_seed": i} for i in range(2)],
            "strong": {"base": "tiny-strong"},
            "pretraining": {"corpus": {"weak_documents": 1000, "strong_documents": 2000}},
        },
        "expert": {"epochs": 3, "batch_size": 32},
        "boosting": {"rounds": 3},
        "student": {"epochs": 2, "batch_size": 64},
        "evaluation": {
            "systems": ["expert_single", "bagging", "ensemw2s", "student_ensemw2s", "student_easy_only"],
            "single_base": "first",
        },
    }
    for key, value in changes.items():
        node = tree
        *parents, last = key.split("__")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return parse_config(tree)


def finish(stage: Stage, *, accepted: bool | None = None, **files: Any) -> None:
    """Puts a stage in place as a run would, one of a round with its record."""
    with store.publish(stage.path, stage.description) as folder:
        for name, value in files.items():
            store.write_json(folder / f"{name}.json", value)
        if accepted is not None:
            round_record(1, [1.0], accepted=accepted).write(folder)


def planned(graph: Graph) -> Plan:
    return lay_out(graph, survey(graph), parameters(graph))


def printed(plan: Plan, resources: Resources | None = None) -> str:
    resources = resources or Resources((Node(4.0, 0.0),))
    console = Console(file=io.StringIO(), width=200)
    division = plan_resources(plan.config, resources)
    print_plan(plan, console, resources=resources, division=division, free_bytes=5 * 10**9, address=None)
    return console.file.getvalue()  # type: ignore[attr-defined]


def line(plan: Plan, name: str) -> str:
    """The table's line for a stage, with single spaces."""
    found = [" ".join(text.split()) for text in printed(plan).splitlines()]
    return next(text for text in found if text.startswith(name + " "))


def test_a_new_run_has_everything_to_do_and_touches_nothing(tmp_path: Path) -> None:
    graph = build_graph(config(tmp_path))
    plan = planned(graph)
    assert set(plan.names("to do")) == {stage.name for stage in graph.stages()}
    assert "Nothing is done yet" in printed(plan)
    assert list(tmp_path.iterdir()) == []


def test_stages_stand_in_the_order_of_the_pipeline(tmp_path: Path) -> None:
    graph = build_graph(config(tmp_path))
    shown = [stage.name for item in planned(graph).items for stage in item.stages]
    assert sorted(shown) == sorted(stage.name for stage in graph.stages())
    firsts = ["data", "corpus", "models/strong", "tokens", "rounds/1", "ensemble", "labels", "evaluation"]
    assert [name for name in shown if name in firsts] == firsts


def test_sizes_follow_from_the_config(tmp_path: Path) -> None:
    plan = planned(build_graph(config(tmp_path)))
    assert "easy 100 to train, 20 to validate, 30 to test; hard 200 without labels, 40 to test" in line(plan, "data")
    assert "2000 documents for strong" in line(plan, "corpus")
    assert "tiny-strong, 159 k parameters, 1 epoch, 16 steps" in line(plan, "models/strong")
    assert "2 × tiny-weak, 30 k parameters, 1 epoch, 8 steps" in line(plan, "models/weak-0 … weak-1")
    assert line(plan, "rounds/2") == "rounds/2 to do 1 expert from weak-1, 3 epochs, 12 steps"
    assert "at most 6 epochs, 24 steps" in line(plan, "baselines/expert_single")
    assert "3 experts, 3 epochs, 12 steps each" in line(plan, "baselines/bagging")
    assert "200 hard prompts, by the ensemble" in line(plan, "labels")
    assert "at most 300 examples, 2 epochs, 10 steps" in line(plan, "students/student_ensemw2s")
    assert " 100 examples, 2 epochs, 4 steps" in line(plan, "students/student_easy_only")
    assert plan.left() == (12, 16 + 2 * 8 + 3 * 12 + 24 + 3 * 12 + 10 + 4)


def test_kept_labels_and_unmixed_students_are_counted(tmp_path: Path) -> None:
    plan = planned(build_graph(config(tmp_path, student__mix_easy=False, student__keep_fraction=0.5)))
    assert "at most 100 examples" in line(plan, "students/student_ensemw2s")


def test_generations_of_students_are_planned_with_their_labels(tmp_path: Path) -> None:
    systems = ["ensemw2s", "student_ensemw2s", "student_generations"]
    changes = {"student__generations": 3, "student__generation_width": 2, "evaluation__systems": systems}
    graph = build_graph(config(tmp_path, **changes))
    plan = planned(graph)
    students = "2 students, 159 k parameters, at most 300 examples, 2 epochs, 10 steps"
    assert students in line(plan, "generations/1/students")
    assert "2 members, probability, uniform" in line(plan, "generations/2/ensemble")
    assert "200 hard prompts, by generation 2" in line(plan, "generations/2/labels")
    for student in ("students/student_ensemw2s", "students/student_generations"):
        assert line(plan, student).startswith(f"{student} to do 159 k parameters, at most 300")
    assert plan.left() == (3 + 3 + 2 * 2 + 2, 16 + 2 * 8 + 3 * 12 + (2 * 2 + 2) * 10)
    shown = [stage.name for item in plan.items for stage in item.stages]
    assert sorted(shown) == sorted(stage.name for stage in graph.stages())


def test_documents_of_a_file_source_end_with_its_examples(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text('{"prompt": "a", "answer": "b", "level": 1}\n')
    source = {"kind": "files", "paths": [str(tmp_path / "own.jsonl")], "columns": {"difficulty": "level"}}
    plan = planned(build_graph(config(tmp_path, data__source=source, data__split={"difficulty_from": "column"})))
    assert "at most 300 documents for weak bases, 300 documents for strong bases" in line(plan, "corpus")


def test_what_is_done_is_reused(tmp_path: Path) -> None:
    graph = build_graph(config(tmp_path))
    finish(graph.data)
    finish(graph.rounds[0].experts[0].stage)
    plan = planned(graph)
    assert line(plan, "data").startswith("data done")
    assert line(plan, "rounds/1").startswith("rounds/1 1 of 2 done")
    assert "`run` would reuse 2 stages; " in printed(plan)
    assert "11 models to train" in printed(plan)


def test_a_complete_run_has_nothing_left(tmp_path: Path) -> None:
    graph = build_graph(config(tmp_path))
    for stage in graph.stages():
        finish(stage, accepted=True)
    plan = planned(graph)
    assert plan.complete
    assert plan.left() == (0, 0)
    assert "Everything is done: `run` would only print the results again." in printed(plan)


def test_work_of_another_config_is_named_with_what_changed(tmp_path: Path) -> None:
    before = build_graph(config(tmp_path))
    for stage in (before.data, before.tokens):
        finish(stage)
    after = build_graph(config(tmp_path, data__sizes__easy_train=90))
    plan = planned(after)
    assert plan.found["data"] == StageState("changed", "data.sizes.easy_train was 100, is 90")
    assert plan.found["tokens"] == StageState("changed"), "its own settings are the same"
    assert "data changed: data.sizes.easy_train was 100, is 90" in " ".join(printed(plan).split())
    text = " ".join(printed(plan).split())
    assert "`run` would refuse: 2 stages here were made with another config." in text
    assert "`run --fresh` deletes them" in text
    assert (before.data.path / store.MARKER).exists()


def test_a_damaged_marker_is_shown_and_does_not_stop_the_plan(tmp_path: Path) -> None:
    graph = build_graph(config(tmp_path))
    graph.data.path.mkdir(parents=True)
    (graph.data.path / store.MARKER).write_text("{")
    assert "is damaged" in survey(graph)["data"].detail
    (graph.data.path / store.MARKER).write_text(json.dumps(["something", "else"]))
    assert survey(graph)["data"].state == "changed"


def test_rounds_after_the_end_of_boosting_are_not_needed(tmp_path: Path) -> None:
    graph = build_graph(config(tmp_path))
    finish(graph.rounds[0].stage, accepted=True)
    finish(graph.rounds[1].stage, accepted=False)
    plan = planned(graph)
    assert set(plan.names("not needed")) == {"rounds/3", "rounds/3/experts/0"}
    assert "boosting ended with round 2" in printed(plan)
    skipping = build_graph(config(tmp_path / "skip", boosting__on_failure="skip"))
    finish(skipping.rounds[0].stage, accepted=False)
    assert planned(skipping).names("not needed") == []


def test_resources_are_divided_as_the_run_would_divide_them(tmp_path: Path) -> None:
    plan = planned(build_graph(config(tmp_path, training__workers=2, labeling__max_actors=2)))
    text = printed(plan, Resources((Node(4.0, 0.0),)))
    assert "this machine: 1 node, 4 CPUs, 0 GPUs, 5.0 GB free" in text
    assert "1 lane at a time, each 2 workers of 1 CPUs" in text
    assert "1 to 2 actors of 1 CPUs, 0 GPUs, beside the lanes" in text
    assert "in turn with the lanes" in printed(plan, Resources((Node(2.0, 0.0),)))


def test_resources_of_this_machine_are_what_the_config_grants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    here = Node(3.0, 0.0, frozenset({DRIVER}))
    assert resources_for(config(tmp_path, cluster__cpus=3, cluster__gpus=0)) == Resources((here,))


def test_parameters_of_the_embedded_family_are_those_of_the_models() -> None:
    from ensemw2s.cli.models import tiny_parameters
    from ensemw2s.models import tiny

    tokenizer = tiny.train_tokenizer(["sort 1 2 3"] * 5, 40)
    for name in tiny.TINY_ARCHITECTURES:
        model = tiny.create_tiny(name, tokenizer, seed=0)
        assert tiny_parameters(name, len(tokenizer)) == sum(p.numel() for p in model.parameters())
