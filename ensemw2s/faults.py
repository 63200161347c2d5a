"""Faults on demand: named points in the code at which a test lets the process die, fail, hang or wait.

`reach` does nothing unless the variable `ENSEMW2S_FAULTS` names a folder that holds a file `plan`. Only tests make one.
A plan is one line: rules, separated by semicolons. A rule names a point, a count and what happens at that count:

    training/checkpoint@3=die; labeling/part@2+=enospc; boosting/chunk@1=hang; pipeline/stage@5=wait:/some/file

- `@3`: the third time that the point is reached. `@2+`: the second time and every time after it.
- `die`: the process ends at once by SIGKILL, as the kernel or a cloud would do it.
- `enospc`: the call raises the operating system's error for a full disk.
- `hang`: the call never returns.
- `wait:FILE`: the call returns when FILE exists.
- `note`: nothing; only the reach is counted.

Reaches are counted over all processes that see the folder, and stay counted when a process starts again: a fault
happens once. The n-th reach of a point leaves the file `reached/POINT@N` (with `+` for `/`), which holds the process's
id. It is written before the fault happens and is never removed, so a test cannot come too late to see it.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from ensemw2s import env

VARIABLE = env.FAULTS.name
"""Names the folder with the plan; not set: there are no faults."""

POINTS = {
    "boosting/chunk": "a worker begins to score a chunk of examples",
    "boosting/scored": "the driver has a round's experts scored, and has not written the round",
    "boosting/trained": "the driver has a round's experts trained, and has not scored them",
    "evaluation/chunk": "a worker begins to evaluate a chunk of examples",
    "labeling/chunk": "an actor begins to label a chunk of prompts",
    "labeling/part": "an actor has written a part of the labels beside its place, and has not put it there",
    "labeling/row": "the driver learns that a chunk is labelled",
    "pipeline/stage": "the driver begins a stage",
    "storage/publish": "a stage's folder is written beside its place, and is not put there",
    "serving/piece": "a replica has decoded a piece of an answer, and has not sent it",
    "training/abandoned": "the driver has told its lanes to end at once",
    "training/begin": "a worker begins a training that is not finished",
    "training/checkpoint": "a worker begins to write a checkpoint",
    "training/checkpoint-written": "a checkpoint is in place, and older ones are not removed",
    "training/step": "a worker begins an optimizer step",
}
"""Every point, and the moment that it stands for."""

_RULE = re.compile(r"(?P<point>[a-z/-]+)@(?P<count>[1-9]\d*)(?P<on>\+?)=(?P<action>die|enospc|hang|note|wait:\S+)")
_PAUSE = 0.02


@dataclass(frozen=True)
class Rule:
    """What happens at a point.

    Attributes:
        point: One of `POINTS`.
        count: At which reach, from 1.
        on: Whether at every later reach, too.
        action: `die`, `enospc`, `hang`, `note` or `wait:FILE`.
    """

    point: str
    count: int
    on: bool
    action: str

    def holds(self, point: str, count: int) -> bool:
        """Whether it is about this reach of this point."""
        return self.point == point and (count == self.count or (self.on and count > self.count))


def read_plan(text: str) -> list[Rule]:
    """The rules of a plan. Raises ValueError if it is not one, or names a point that does not exist."""
    rules = []
    for part in filter(None, map(str.strip, text.split(";"))):
        found = _RULE.fullmatch(part)
        if found is None or found["point"] not in POINTS:
            raise ValueError(f"{part!r} is no fault: write POINT@COUNT=ACTION with one of {', '.join(POINTS)}")
        rules.append(Rule(found["point"], int(found["count"]), bool(found["on"]), found["action"]))
    return rules


def reach(point: str) -> None:
    """Says that this process is at a point. Does nothing outside of tests.

    Raises:
        OSError: If the plan says so.
    """
    if (folder := env.FAULTS.get()) is not None:
        _reach(Path(folder), point)


def reached(folder: Path, point: str, count: int) -> Path:
    """The file that says that a point was reached this often."""
    return folder / "reached" / f"{point.replace('/', '+')}@{count}"


def _reach(folder: Path, point: str) -> None:
    try:
        rules = [rule for rule in read_plan((folder / "plan").read_text()) if rule.point == point]
    except FileNotFoundError:
        return
    if not rules:
        return
    count = _count(folder, point)
    for rule in rules:
        if rule.holds(point, count):
            _happen(rule, folder)


def _count(folder: Path, point: str) -> int:
    """Which reach of a point this one is: the lowest number that nobody has taken."""
    count = 1
    reached(folder, point, count).parent.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=folder) as own:
        own.write(str(os.getpid()))
        own.flush()
        while True:
            try:
                os.link(own.name, reached(folder, point, count))  # fails where the name is taken, in every process
                return count
            except FileExistsError:
                count += 1


def _happen(rule: Rule, folder: Path) -> None:
    action, _, file = rule.action.partition(":")
    if action == "note":
        return
    if action == "enospc":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), rule.point)
    # nobody is held for ever: when the test has removed its folder, what still waits ends
    while action != "die" and (folder / "plan").exists():
        if file and Path(file).exists():
            return
        time.sleep(_PAUSE)
    os.kill(os.getpid(), signal.SIGKILL)
