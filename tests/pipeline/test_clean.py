"""Cleaning frees weights that a finished run does without, and nothing that serving or the same command reads."""

from pathlib import Path

import pytest

from ensemw2s.boosting.consensus import PassRecord
from ensemw2s.errors import ConfigError, ResourceError
from ensemw2s.pipeline.clean import clean, superfluous
from ensemw2s.pipeline.graph import Graph
from ensemw2s.pipeline.plan import lay_out
from ensemw2s.pipeline.survey import survey
from ensemw2s.storage import store

from ..boosting.conftest import round_record
from .test_build import graph

WEIGHTS = "model.safetensors"

PASS = PassRecord(
    number=1, anchor=1.0, agreement="token", judge="none", seconded=None, validation=9, accuracy=1.0, best=1.0,
    needed=0.9, threshold=0.5, precision=1.0, prompts=10, passing=10, kept=5,
)  # fmt: skip

IN_THE_CACHE = ("models/", "corpus")
"""Stages that are no part of the run's folder."""


@pytest.fixture
def finished(tmp_path: Path) -> Graph:
    """A run whose stages are all done; every model has a hundred bytes of weights."""
    made = graph(storage=str(tmp_path), **{"consensus.passes": 1, "student.generations": 2})
    models = [e.stage for r in made.all_rounds for e in r.experts] + [e.stage for e in made.baseline_experts]
    models += [s.stage for s in (*made.students, *made.learning_from(made.all_labels))]
    names = {stage.name for stage in models}
    for stage in made.stages():
        if stage.name.startswith(IN_THE_CACHE):
            continue
        with store.publish(stage.path, stage.description) as folder:
            for member in [folder] if stage.name in names else [folder / "members" / "0"]:
                if stage.name in names or stage.name.endswith("ensemble"):
                    member.mkdir(parents=True, exist_ok=True)
                    (member / WEIGHTS).write_bytes(bytes(100))
            (folder / "record.json").write_text("{}")
    (made.root / "config.yaml").write_text("name: study")
    (made.root / "results.json").write_text("{}")
    return made


def weights(run: Path) -> set[str]:
    return {str(path.parent.relative_to(run)) for path in run.rglob(WEIGHTS)}


def test_what_is_served_and_what_is_read_again_stays(finished: Graph) -> None:
    parts = clean(finished.root)
    assert {part.name for part in parts} == {"rounds", "consensus", "baselines", "generations"}
    students = {str(s.stage.path.relative_to(finished.root)) for s in finished.students}
    assert weights(finished.root) == {"ensemble/members/0"} | students
    assert store.is_done(finished.evaluation.path, finished.evaluation.description), "the same command would go on"
    assert all((stage.path / "record.json").is_file() for stage in finished.stages() if stage.path.exists())


def test_a_stage_without_its_weights_is_not_done_and_no_other_is_touched(finished: Graph) -> None:
    parts = clean(finished.root)
    done = {stage.name for stage in finished.stages() if store.is_done(stage.path, stage.description)}
    assert done >= {"data", "tokens", "ensemble", "labels", "baselines/labels/bagging", "consensus/1/kept"}
    assert done >= {student.stage.name for student in finished.students}
    assert not done & {"rounds/1", "rounds/1/experts/0", "consensus/1/rounds/2", "baselines/bagging/0"}
    assert not done & {"generations/1/ensemble", "generations/1/students/0"}
    assert sum(part.size for part in parts) == 100 * sum(len(part.files) for part in parts)


def test_a_dry_look_changes_nothing_and_a_second_time_frees_nothing(finished: Graph) -> None:
    before = sorted(finished.root.rglob("*"))
    found = superfluous(finished.root)
    assert sorted(finished.root.rglob("*")) == before
    assert clean(finished.root) == found
    assert superfluous(finished.root) == ()


def test_a_run_that_is_not_finished_keeps_everything(finished: Graph) -> None:
    (finished.evaluation.path / store.MARKER).unlink()
    with pytest.raises(ConfigError, match="not finished, so all of it is needed"):
        clean(finished.root)
    assert "rounds/1/experts/0" in weights(finished.root)


def test_a_run_at_work_and_what_is_no_run_are_refused(finished: Graph, tmp_path: Path) -> None:
    with store.only_one(finished.root), pytest.raises(ResourceError, match="another run is at work"):
        clean(finished.root)
    with pytest.raises(ConfigError, match="is no run"):
        clean(tmp_path)
    assert not (tmp_path / ".lock").exists()


def test_a_plan_of_a_cleaned_run_has_nothing_to_do_where_run_would_do_nothing(finished: Graph) -> None:
    for r in finished.all_rounds:
        round_record(r.number, [1.0]).write(r.stage.path)
    for p in finished.passes:
        PASS.write(p.kept.path)

    def states() -> set[str]:
        found = survey(finished)
        return {found[stage.name].state for stage in finished.stages() if not stage.name.startswith(IN_THE_CACHE)}

    assert states() == {"done"}
    clean(finished.root)
    assert states() == {"done", "freed"}
    found = survey(finished)
    assert found["rounds/1/experts/0"].state == found["baselines/bagging/0"].state == "freed"
    assert found["ensemble"].state == "done"
    plan = lay_out(finished, found, dict.fromkeys((base.name for base in finished.bases), 1))
    assert plan.left() == (0, 0)
    (finished.root / "results.json").unlink()
    assert states() == {"done", "to do"}, "without its results a run does work"
