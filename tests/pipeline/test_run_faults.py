"""Real kills of whole runs: the same command again goes on, and ends with the bytes of a run that nobody disturbed.

Moments are not slept for but seen: in what a run says, and in the files that appear.
"""

import contextlib
import random
import time
from collections.abc import Callable

import psutil
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.faults]

SYSTEMS = ["ensemw2s", "student_ensemw2s"]  # the baselines are not needed to come to labels and a student

SAME = ("rounds/*/errors.parquet", "rounds/**/*.safetensors", "ensemble/**/*", "labels/*.parquet")
MEBIBYTE = 2**20
"""A file that the weights of the strong model fit into, but not their optimizer's state."""

SCORING = "ray::Map(_in_pooled_process)"
STUDENT = ("tokens/students/student_ensemw2s/*.parquet", "students/student_ensemw2s/*.safetensors")


def after(pattern: str, count: int = 1) -> Callable:
    """When so many files of this name are there."""
    return lambda place, running: len(list(place.storage.glob(pattern))) >= count


def said(text: str) -> Callable:
    """When the run says this."""
    return lambda place, running: text in running.output


MOMENTS = {
    "the first base is half trained": after("cache/.checkpoints-models-*/step-*"),
    "the first base is trained": after("cache/models-*/.complete.json"),
    "round 1 begins": said("boosting round 1"),
    "the expert of round 1 is trained, not scored": after("small/rounds/1/experts/0/.complete.json"),
    "round 1 is over": after("small/rounds/1/round.json"),
    "round 2 begins": said("boosting round 2"),
    "the expert of round 2 is half trained": after("small/rounds/2/experts/.checkpoints-0/step-*"),
    "the expert of round 2 is trained, not scored": after("small/rounds/2/experts/0/.complete.json"),
    "the ensemble is put together": after("small/ensemble/.complete.json"),
    "some prompts are labelled": after("small/labels/part-*.parquet"),
    "the student begins": after("small/tokens/students/student_ensemw2s/.complete.json"),
    "the evaluation begins": said("every system on both test splits"),
}
UNFINISHED = {
    "the first base is half trained": "rounds/1/experts/0/.complete.json",
    "round 1 begins": "rounds/1/.complete.json",
    "the expert of round 1 is trained, not scored": "rounds/1/.complete.json",
    "round 2 begins": "rounds/2/.complete.json",
    "the expert of round 2 is half trained": "rounds/2/experts/0/.complete.json",
    "some prompts are labelled": "labels/.complete.json",
    "the student begins": "evaluation/.complete.json",
}
FROZEN = {"the expert of round 2 is half trained"}


@pytest.fixture
def study(workplace, own_jsonl):
    own = {"evaluation.systems": SYSTEMS, "training.checkpoint_seconds": 0.2}
    return workplace.study(own_jsonl, **own)


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


def kill_when(place, study, moment: str) -> None:
    """Starts the run and kills its driver at a moment."""
    running = place.start("run", study)
    running.wait_for(moment, lambda: MOMENTS[moment](place, running))
    # held, or else it may be done before Ray sees that its driver is gone
    running.kill(running.hold("RayTrainWorker") if moment in FROZEN else ())
    assert not is_over(place, moment), "killed too late to be in the middle"


def kill_about(place, study, moment: str, *, later: float) -> None:
    """The same some time after a moment, or at once where an earlier kill came after what it is a moment of."""
    running = place.start("run", study)
    running.wait_for(moment, lambda: MOMENTS[moment](place, running) or is_over(place, moment))
    time.sleep(later)
    running.kill()


def kill_at_random(place, study, seed: int, kills: int) -> None:
    """Starts the run so many times and kills its driver each time, later and later in it, unless a run is done."""
    chance, names = random.Random(seed), list(MOMENTS)
    for number in sorted(chance.randrange(len(names)) for _ in range(kills)):
        kill_about(place, study, names[number], later=chance.choice([0.0, 0.2, 1.0, 3.0]) * chance.random())
        if (place.run_folder / "results.json").exists():
            break


def is_over(place, moment: str) -> bool:
    """Whether what was to be disturbed at this moment is finished."""
    return moment in UNFINISHED and (place.run_folder / UNFINISHED[moment]).exists()


def kill_controllers_when(place, study, moment: str) -> None:
    """Starts the run and kills Ray Train's own processes at a moment: the run ends by itself and says how to go on."""
    running = place.start("run", study)
    running.wait_for(moment, lambda: MOMENTS[moment](place, running))
    assert kill_all(running.descendants("ray::TrainController")) == 1
    finished = running.wait()
    assert finished.code == 1
    assert "controller died: the same command goes on" in finished.text
    assert not is_over(place, moment), "killed too late to be in the middle"


@pytest.mark.long
def test_a_run_stopped_and_killed_between_and_inside_rounds_ends_as_if_nothing_had_happened(
    workplace, undisturbed, study
) -> None:
    workplace.take_storage(undisturbed, only_cache=True)
    stop_when(workplace, workplace.start("run", study), "the expert of round 1 is trained, not scored")
    kill_when(workplace, study, "the expert of round 2 is half trained")
    first = workplace.json("rounds/1/round.json")
    workplace.done("run", study)
    assert outcome(workplace) == outcome(undisturbed)
    assert workplace.json("rounds/1/round.json") == first, "a finished round was done again"
    begun = [int(path.suffix[1:]) for path in workplace.run_folder.glob("tensorboard/rounds/2/experts/0/events.*")]
    assert sorted(begun)[0] == 0
    assert sorted(begun)[1] > 0, "the expert did not go on from its checkpoint"
    assert not list(workplace.storage.rglob(".checkpoints-*"))


def stop_when(place, running, moment: str) -> None:
    """Presses Ctrl-C at a moment: the run ends soon, says how to go on, and leaves no process."""
    running.wait_for(moment, lambda: MOMENTS[moment](place, running))
    finished = running.interrupt()
    assert finished.code == 130
    assert "the same command continues" in finished.text
    assert not is_over(place, moment), "stopped too late to be in the middle"


@pytest.mark.long
def test_a_run_that_loses_its_controllers_and_its_labels_driver_ends_as_if_nothing_had_happened(
    workplace, undisturbed, study
) -> None:
    workplace.take_storage(undisturbed, only_cache=True)
    kill_controllers_when(workplace, study, "the expert of round 2 is half trained")
    kill_when(workplace, study, "some prompts are labelled")
    kept = parts(workplace)
    workplace.done("run", study)
    assert outcome(workplace) == outcome(undisturbed)
    assert kept.items() <= parts(workplace).items(), "prompts were labelled twice"


def test_a_run_that_is_stopped_and_whose_workers_are_killed_ends_as_if_nothing_had_happened(
    workplace, undisturbed, own_jsonl
) -> None:
    """Of trainings, of scoring and of labels; and the new training workers have no room for large checkpoints."""
    often = {"evaluation.systems": SYSTEMS, "training.checkpoint_seconds": 0.1}
    study = workplace.study(own_jsonl, **often)
    stop_when(workplace, workplace.start("run", study), "the first base is half trained")
    stopped = steps_of_bases(workplace)
    running = workplace.start("run", study)
    running.wait_for("a checkpoint", lambda: steps_of_bases(workplace) - stopped)
    dead, before = running.descendants("ray::RayTrainWorker"), gone_on(workplace)
    assert kill_all(dead) == 1
    assert len(list(workplace.storage.glob("cache/models-*/.complete.json"))) < 3, "killed too late to be in the middle"
    running.wait_for("new workers", lambda: (new := running.descendants("ray::RayTrainWorker")) and new != dead)
    for process in running.descendants("ray::RayTrainWorker"):
        process.rlimit(psutil.RLIMIT_FSIZE, (MEBIBYTE, MEBIBYTE))
    running.wait_for("a trained expert", lambda: after("small/rounds/1/experts/0/.complete.json")(workplace, running))
    running.wait_for("a scoring process", lambda: running.descendants(SCORING))
    assert kill_all(running.descendants(SCORING)) > 0
    assert not (workplace.run_folder / "rounds/1/.complete.json").exists(), "killed too late to be in the middle"
    running.wait_for("the labels begin", lambda: after("small/labels/.started.json")(workplace, running))
    running.wait_for("a decoding actor", lambda: running.descendants("ray::MapWorker"))
    assert kill_all(running.descendants("ray::MapWorker")) > 0
    tried: set[str] = set()
    running.wait_for("a trained student", lambda: tried.update(of_the_student(workplace)) or student_is(workplace))
    finished = running.wait()
    assert finished.code == 0, running.tail()
    assert any(name.startswith(".working") for name in tried), "no checkpoint was tried"
    assert not any(name.startswith("step") for name in tried), "a checkpoint found room"
    assert outcome(workplace) == outcome(undisturbed)
    assert gone_on(workplace) > before, "no base went on from a checkpoint after its worker was killed"


def steps_of_bases(place) -> set[str]:
    """Checkpoints of models that are being pre-trained."""
    found = place.storage.glob("cache/.checkpoints-models-*/step-*")
    return {path.relative_to(place.storage).as_posix() for path in found}


def gone_on(place) -> set[str]:
    """Curves of bases that were gone on with from a checkpoint: each ends with the step that it begins after."""
    return {str(path) for path in place.run_folder.glob("tensorboard/models/*/events.*") if path.suffix != ".0"}


def of_the_student(place) -> list[str]:
    """Its checkpoints, those included that are being written."""
    return [path.name for path in place.run_folder.glob("students/.checkpoints-*/*")]


def student_is(place) -> bool:
    return (place.run_folder / "students/student_ensemw2s/.complete.json").exists()


def kill_all(processes: list[psutil.Process]) -> int:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return len(processes)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_ten_times_at_random_ends_as_if_nothing_had_happened(workplace, undisturbed, study, seed) -> None:
    kill_at_random(workplace, study, seed, kills=10)
    workplace.done("run", study)
    assert outcome(workplace) == outcome(undisturbed)
