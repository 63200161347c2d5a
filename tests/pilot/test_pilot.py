"""A pilot is a small run of the same config, and reads what that run left."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ensemw2s.config import Config, load_config
from ensemw2s.costs.here import Here
from ensemw2s.evaluation.records import BySplit, Metrics, RunResults, SystemResult
from ensemw2s.labeling.parts import part_name, write_part
from ensemw2s.pilot import pilot
from ensemw2s.pilot.records import PilotResult
from ensemw2s.pipeline.build import build_graph
from ensemw2s.pipeline.graph import run_directory


def test_the_small_run_has_few_rows_an_expert_for_each_base_and_a_folder_of_its_own() -> None:
    config = load_config("quickstart")
    small = pilot.pilot_config(config, 100, ceiling=True)
    assert run_directory(small).name == "quickstart-pilot"
    assert run_directory(small).parent == run_directory(config).parent
    sizes = small.data.sizes
    assert (sizes.easy_train, sizes.hard_unlabelled, sizes.ood_test, sizes.hard_validation) == (100, 100, 50, 0)
    assert small.boosting.rounds == len(config.models.weak)
    assert not small.consensus.passes
    assert small.evaluation.systems == ["sequence_vote", "ensemw2s", "student_easy_only", "student_ceiling"]
    assert "student_ceiling" not in pilot.pilot_config(config, 100, ceiling=False).evaluation.systems
    assert Config.model_validate(small.model_dump(mode="json")) == small, "the small run can be run by hand, too"


def test_a_pilot_makes_no_split_larger_than_the_whole_run_does() -> None:
    config = load_config("quickstart", ["data.sizes.easy_train=30", "models.weak=[{base: tiny-weak}]"])
    small = pilot.pilot_config(config, 100, ceiling=True)
    assert small.data.sizes.easy_train == 30
    assert small.boosting.rounds == 2, "two experts, for agreement is between two"


def test_the_small_run_has_the_labels_and_students_that_a_pilot_reads() -> None:
    for recipe in ("quickstart", "tiny"):
        graph = build_graph(pilot.pilot_config(load_config(recipe), 100, ceiling=True))
        assert set(graph.labels) == {"ensemw2s"}
        assert {student.name for student in graph.students} == {"student_easy_only", "student_ceiling"}


def _csv(name: str, answered: int, n: int = 160) -> None:
    rows = [f"{name} {i}?,{i if i < answered else ''}\n" for i in range(n)]
    Path(f"{name}.csv").write_text("question,answer\n" + "".join(rows))


@pytest.mark.parametrize(("answered", "known"), [(50, 0.0), (160, 1.0)])
def test_a_ceiling_needs_true_answers_to_the_hard_prompts(
    answered: int, known: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _csv("easy", 200, 200)
    _csv("hard", answered)
    small = pilot.pilot_config(load_config("qa"), 100, ceiling=False)
    assert pilot._known(small) == known
    assert pilot._known(load_config("quickstart")) == 1.0, "generated examples have answers"


def _rows(voter: str, answers: list[str]) -> list[dict[str, str]]:
    return [
        {"split": "ood", "voter": voter, "id": str(i), "answer": answer, "truth": "t"}
        for i, answer in enumerate(answers)
    ]


def _labels(*agreed: bool) -> pa.Table:
    shares = [[1.0, 1.0 if each else 0.5] for each in agreed]
    return pa.table({"prompt": ["x" * i for i in range(len(agreed))], "token_agreement": shares})


def test_agreement_is_of_whole_answers_and_is_held_against_the_truth() -> None:
    answers = [
        *_rows("expert:a", ["t", "t", "x", "y"]),
        *_rows("expert:b", ["t ", "t", "x", "t"]),
        *_rows("ensemw2s", ["t", "t", "x", "t"]),
        {"split": "id", "voter": "expert:a", "id": "9", "answer": "t", "truth": "t"},
    ]
    found = pilot.agreement(answers, _labels(True, True, False, True, False, False), load_config("quickstart"))
    assert found is not None
    assert (found.experts, found.prompts, found.tests) == (2, 6, 4)
    assert (found.share, found.short, found.long) == (0.5, 1.0, 0.0)
    assert (found.tests_share, found.right, found.right_others) == (0.75, pytest.approx(2 / 3), 1.0)


def test_one_expert_agrees_with_nobody() -> None:
    rows = [*_rows("expert:a", ["t"]), *_rows("ensemw2s", ["t"])]
    assert pilot.agreement(rows, _labels(True), load_config("quickstart")) is None


def test_a_pilot_reads_what_its_run_left_and_leaves_its_figures_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config("quickstart", [f"storage={tmp_path}"])
    ran: list[Config] = []

    def finished(small: Config, **_: object) -> RunResults:
        ran.append(small)
        graph = build_graph(small)
        graph.evaluation.path.mkdir(parents=True)
        rows = [*_rows("expert:a", ["t", "x"]), *_rows("expert:b", ["t", "y"]), *_rows("ensemw2s", ["t", "x"])]
        pq.write_table(pa.Table.from_pylist(rows), graph.evaluation.path / "answers.parquet")
        write_part(_labels(True, False, False), graph.labels["ensemw2s"].path / part_name(0))
        right = {"ensemw2s": 0.5, "student_easy_only": 0.25, "student_ceiling": 0.75}
        both = {name: BySplit(id=Metrics(exact_match=1.0), ood=Metrics(exact_match=x)) for name, x in right.items()}
        return RunResults(systems={name: SystemResult(**dict(each)) for name, each in both.items()})

    left = Here(seconds=90, stages=(), memory_gib=1, machine_gib=8, trained_before=True, problem="")
    monkeypatch.setattr(pilot, "run_pipeline", finished)
    monkeypatch.setattr(pilot, "on_this_machine", lambda graph, plan, _: left if graph.config == config else None)
    found = pilot.run(config, 100)
    assert [small.name for small in ran] == ["quickstart-pilot"]
    assert (found.ensemble_easy, found.ensemble, found.easy_only, found.ceiling) == (1.0, 0.5, 0.25, 0.75)
    assert found.agreement is not None
    assert (found.agreement.share, found.agreement.tests_share, found.agreement.right) == (1 / 3, 0.5, 1.0)
    assert found.seconds == 90, "of the whole run, of which nothing is done"
    assert found.time.startswith("The whole run on this machine: about ")
    assert PilotResult.read_file(tmp_path / "quickstart-pilot" / "pilot.json") == found
