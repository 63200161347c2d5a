"""Real kills of whole runs: the same command again goes on, and ends with the bytes of a run that nobody disturbed.

Moments are points in the code (`ensemw2s.faults`), at which the process itself dies, or is held until it is killed.
"""

import random

import psutil
import pytest

from ensemw2s.faults import POINTS

pytestmark = [pytest.mark.ray, pytest.mark.faults]

SYSTEMS = ["ensemw2s", "student_ensemw2s"]  # the baselines are not needed to come to labels and a student

SAME = ("rounds/*/errors.parquet", "rounds/**/*.safetensors", "ensemble/**/*", "labels/*.parquet")
STUDENT = ("tokens/students/student_ensemw2s/*.parquet", "students/student_ensemw2s/*.safetensors")

ROUND = 64
"""Optimizer steps of an expert: eight epochs of 120 examples, 16 at a time."""

OFTEN = {"training.checkpoint_seconds": 0}
"""A checkpoint before every step but the first."""

AT_RANDOM = {
    "boosting/chunk": 2, "boosting/scored": 2, "boosting/trained": 2, "evaluation/chunk": 2, "labeling/chunk": 3,
    "labeling/part": 3, "labeling/row": 3, "pipeline/stage": 6, "storage/publish": 12, "training/begin": 3,
    "training/checkpoint": 60, "training/checkpoint-written": 60, "training/step": 150,
}  # fmt: skip
"""Points that a run comes by, and about how often."""


@pytest.fixture
def study(workplace, own_jsonl):
    return workplace.study(own_jsonl, **{"evaluation.systems": SYSTEMS, **OFTEN})


def outcome(place) -> tuple:
    """What must not depend on whether a run was disturbed."""
    rounds = [place.json(f"rounds/{t}/round.json") for t in (1, 2)]
    figures = [(r["alpha"], r["weighted_error"], r["weights"], r["accepted"]) for r in rounds]
    systems = place.json("results.json")["systems"]
    metrics = {name: {split: systems[name][split] for split in ("id", "ood")} for name in SYSTEMS}
    return place.files(*SAME, *STUDENT, without=(".complete.json",)), figures, metrics


def parts(place) -> dict[str, int]:
    """The parts of the labels that are there, and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in place.run_folder.glob("labels/part-*.parquet")}


def begun(place, pattern: str) -> list[int]:
    """The steps that trainings began after; more than one where a training was gone on with."""
    return sorted(int(path.suffix[1:]) for path in place.run_folder.glob(f"tensorboard/{pattern}/events.*"))


def kill_the_driver_at(place, study, point: str, count: int = 1) -> None:
    """Runs until the driver dies at a point of its own."""
    place.faults.plan(f"{point}@{count}=die")
    place.start("run", study).killed()
    assert place.faults.count(point) == count


def kill_the_driver_while(place, study, point: str, count: int) -> None:
    """Runs until a process that the driver started is at a point; kills the driver, and that process goes by itself."""
    place.faults.plan(f"{point}@{count}=hang")
    running = place.start("run", study)
    running.wait_until_reached(place.faults, point, count)
    running.kill()


def stop_the_driver_while(place, study, point: str, count: int) -> None:
    """Presses Ctrl-C while a training is at a point: the run ends soon, says how to go on, and leaves no process."""
    gate = place.faults.gate("stopped")
    place.faults.plan(f"{point}@{count}=wait:{gate}; training/abandoned@1=note")
    running = place.start("run", study)
    running.wait_until_reached(place.faults, point, count)

    def let_go() -> None:
        running.wait_until_reached(place.faults, "training/abandoned")
        gate.touch()

    finished = running.interrupt(let_go)
    assert finished.code == 130, running.tail()
    assert "the same command continues" in finished.text


def kill_at_random(place, study, seed: int, kills: int) -> None:
    """Starts the run so many times and kills its driver while a process is held at a point: one that the seed draws,
    or the evaluation, which comes last. So a run never ends before it is killed.
    """
    chance = random.Random(seed)
    for _ in range(kills):
        point = chance.choice(sorted(AT_RANDOM))
        rules = {"evaluation/chunk": 1, point: chance.randint(1, AT_RANDOM[point])}
        place.faults.plan("; ".join(f"{name}@{count}=hang" for name, count in rules.items()))
        running = place.start("run", study)
        running.wait_for(str(rules), lambda rules=rules: any(place.faults.process(*rule) for rule in rules.items()))
        running.kill()
    place.faults.plan("")


def test_random_kills_know_every_point_of_a_run():
    others = {name for name in POINTS if name.startswith("serving/")} | {"training/abandoned"}
    assert AT_RANDOM.keys() == POINTS.keys() - others


@pytest.mark.long
def test_a_run_stopped_and_killed_between_and_inside_rounds_ends_as_if_nothing_had_happened(
    workplace, undisturbed, study
) -> None:
    workplace.take_storage(undisturbed, only_cache=True)
    kill_the_driver_at(workplace, study, "boosting/trained")
    kill_the_driver_while(workplace, study, "training/checkpoint-written", 30)  # the expert of round 1 is trained
    first = workplace.json("rounds/1/round.json")
    workplace.done("run", study)
    assert outcome(workplace) == outcome(undisturbed)
    assert workplace.json("rounds/1/round.json") == first, "a finished round was done again"
    assert begun(workplace, "rounds/1/experts/0") == [0], "a trained expert was trained again"
    assert begun(workplace, "rounds/2/experts/0") == [0, 30], "the expert did not go on from its checkpoint"
    assert not list(workplace.storage.rglob(".checkpoints-*"))


@pytest.mark.long
def test_a_run_that_loses_its_controllers_and_its_labels_driver_ends_as_if_nothing_had_happened(
    workplace, undisturbed, study
) -> None:
    workplace.take_storage(undisturbed, only_cache=True)
    count = ROUND - 1 + 30
    workplace.faults.plan(f"training/checkpoint-written@{count}=hang")
    running = workplace.start("run", study)
    running.wait_until_reached(workplace.faults, "training/checkpoint-written", count)
    [controller] = running.descendants("ray::TrainController")
    controller.kill()
    finished = running.wait()
    assert finished.code == 1
    assert "controller died: the same command goes on" in finished.text
    kill_the_driver_at(workplace, study, "labeling/row")
    assert begun(workplace, "rounds/2/experts/0") == [0, 30]
    kept = parts(workplace)
    assert len(kept) > 0
    workplace.done("run", study)
    assert outcome(workplace) == outcome(undisturbed)
    assert kept.items() <= parts(workplace).items(), "prompts were labelled twice"


def test_a_run_that_is_stopped_and_whose_workers_die_ends_as_if_nothing_had_happened(
    workplace, undisturbed, study
) -> None:
    """Of trainings, of scoring and of labels; and the disk is full for the new training workers' checkpoints."""
    stop_the_driver_while(workplace, study, "training/checkpoint-written", 3)
    [stopped] = workplace.storage.glob("cache/.checkpoints-models-*")
    last = max(int(path.name.removeprefix("step-")) for path in stopped.glob("step-*"))
    assert last >= 3
    assert not list(workplace.storage.glob("cache/models-*/.complete.json")), "stopped too late to be in the middle"
    deaths = ("training/checkpoint-written@2", "boosting/chunk@2", "labeling/chunk@1")
    rules = [*(f"{death}=die" for death in deaths), "training/checkpoint@3+=enospc"]
    workplace.faults.plan("; ".join(rules))
    running = workplace.start("run", study)
    finished = running.wait()
    assert finished.code == 0, running.tail()
    for death in deaths:
        point, count = death.split("@")
        assert not psutil.pid_exists(workplace.faults.process(point, int(count))), f"nobody died at {death}"
    assert workplace.faults.count("training/checkpoint") > 2 * ROUND, "others than the dead wrote no checkpoints"
    assert outcome(workplace) == outcome(undisturbed)
    steps = begun(workplace, "models/*")
    assert steps[:3] == [0, 0, 0]
    assert len(steps) == 5, "after Ctrl-C, or its worker's death, a training began anew more than once"
    assert last in steps, "the base that Ctrl-C stopped began anew"
    again = next(step for step in steps[3:] if step != last)
    assert again in (1, 2, last + 1, last + 2), "the base whose worker died began anew"  # which of the two, and when
    assert not list(workplace.storage.rglob(".checkpoints-*"))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_ten_times_at_random_ends_as_if_nothing_had_happened(workplace, undisturbed, study, seed) -> None:
    kill_at_random(workplace, study, seed, kills=10)
    workplace.done("run", study)
    assert outcome(workplace) == outcome(undisturbed)
