import errno
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ensemw2s import faults

ROOT = Path(__file__).parents[1]


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """Makes a plan for this process and for those that it starts."""
    monkeypatch.setenv(faults.VARIABLE, str(tmp_path))
    return (tmp_path / "plan").write_text


def reach(point: str, times: int) -> None:
    for _ in range(times):
        faults.reach(point)


def process(code: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", f"from ensemw2s import faults\n{code}"], cwd=ROOT)


def wait_for(file: Path) -> None:
    until = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < until, f"{file} did not come"
        time.sleep(0.01)


def numbers(folder: Path) -> list[int]:
    return sorted(int(path.name.split("@")[1]) for path in (folder / "reached").iterdir())


def test_nothing_happens_where_no_plan_is_made(tmp_path, monkeypatch):
    monkeypatch.delenv(faults.VARIABLE, raising=False)
    faults.reach("training/step")
    monkeypatch.setenv(faults.VARIABLE, str(tmp_path))
    faults.reach("training/step")
    monkeypatch.setenv(faults.VARIABLE, str(tmp_path / "not there"))
    faults.reach("training/step")
    assert list(tmp_path.iterdir()) == []


def test_a_point_costs_nothing_where_no_plan_is_made(monkeypatch):
    monkeypatch.delenv(faults.VARIABLE, raising=False)
    began = time.process_time()
    reach("training/step", 10_000)
    assert time.process_time() - began < 0.5, "a step of a training takes a thousand times as long"


def test_points_that_the_plan_does_not_name_are_not_counted(plan, tmp_path):
    plan("training/step@9=die")
    faults.reach("training/checkpoint")
    assert not (tmp_path / "reached").exists()


def test_a_disk_is_full_at_the_time_that_is_planned_and_once(plan, tmp_path):
    plan("labeling/part@2=enospc")
    faults.reach("labeling/part")
    with pytest.raises(OSError, match="No space left on device") as caught:
        faults.reach("labeling/part")
    assert caught.value.errno == errno.ENOSPC
    reach("labeling/part", 3)
    assert numbers(tmp_path) == [1, 2, 3, 4, 5]


def test_a_disk_stays_full_where_that_is_planned(plan):
    plan("labeling/part@2+=enospc; training/step@1=enospc")
    faults.reach("labeling/part")
    for _ in range(3):
        with pytest.raises(OSError, match="labeling/part"):
            faults.reach("labeling/part")


def test_a_process_dies_once_and_leaves_its_number(plan, tmp_path):
    plan("training/step@3=die")
    faults.reach("training/step")
    first = process("for _ in range(5): faults.reach('training/step')")
    assert first.wait() == -signal.SIGKILL
    assert faults.reached(tmp_path, "training/step", 3).read_text() == str(first.pid)
    assert process("for _ in range(5): faults.reach('training/step')").wait() == 0, "the next one died, too"
    assert numbers(tmp_path) == list(range(1, 9))


def test_every_number_is_taken_once_by_processes_side_by_side(plan, tmp_path):
    plan("training/step@1000=die")
    code = "for _ in range(40): faults.reach('training/step')"
    assert [one.wait() for one in [process(code) for _ in range(4)]] == [0] * 4
    assert numbers(tmp_path) == list(range(1, 161))


def test_a_process_waits_for_a_file(plan, tmp_path):
    plan(f"training/step@1=wait:{tmp_path / 'go'}")
    held = threading.Thread(target=faults.reach, args=("training/step",))
    held.start()
    seen = faults.reached(tmp_path, "training/step", 1)
    wait_for(seen)
    assert seen.read_text() == str(os.getpid())
    held.join(0.2)
    assert held.is_alive()
    (tmp_path / "go").touch()
    held.join(60)
    assert not held.is_alive()


@pytest.mark.parametrize("action", ["hang", "wait:/no/such/file"])
def test_what_hangs_ends_with_the_plan(plan, tmp_path, action):
    plan(f"training/step@1={action}")
    held = process("faults.reach('training/step')")
    wait_for(faults.reached(tmp_path, "training/step", 1))
    with pytest.raises(subprocess.TimeoutExpired):
        held.wait(0.2)
    (tmp_path / "plan").unlink()
    assert held.wait(60) == -signal.SIGKILL


def test_processes_that_are_forked_read_the_same_plan(plan, tmp_path):
    plan("training/step@2=die")
    faults.reach("training/step")
    child = multiprocessing.get_context("fork").Process(target=faults.reach, args=("training/step",))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    "text",
    [
        "training/step", "training/step@0=die", "training/step@1=explode", "training/stop@1=die", "@1=die",
        "training/step@1=wait", "training/step@1=die, labeling/part@1=die",
    ],
)  # fmt: skip
def test_a_plan_with_a_slip_is_refused(plan, text):
    plan(text)
    with pytest.raises(ValueError, match="is no fault: write POINT@COUNT=ACTION"):
        faults.reach("training/step")


def test_the_points_in_the_code_are_those_that_are_listed():
    used = [
        name
        for path in (ROOT / "ensemw2s").rglob("*.py")
        for name in re.findall(r"""faults\.reach\(["']([^"']*)["']\)""", path.read_text(encoding="utf-8"))
    ]
    assert sorted(set(used)) == sorted(faults.POINTS)


def test_no_config_and_no_command_sets_the_variable():
    own = {ROOT / "ensemw2s" / name for name in ("faults.py", "env.py")}
    found = [path for path in (ROOT / "ensemw2s").rglob("*.py") if faults.VARIABLE in path.read_text(encoding="utf-8")]
    assert set(found) <= own
