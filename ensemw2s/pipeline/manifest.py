"""manifest.json: what a run was made with, and when each of its stages ran.

It is written anew after every stage, so that a run that was killed has it, too.
"""

from __future__ import annotations

import subprocess
from importlib import metadata
from pathlib import Path

from ensemw2s.evaluation.records import StageTime
from ensemw2s.pipeline.graph import Graph
from ensemw2s.storage import remote
from ensemw2s.storage.record import Record

MANIFEST = "manifest.json"
"""File of the manifest, in the run's folder."""

PACKAGES = (
    "ensemw2s", "ray", "torch", "transformers", "deepspeed", "datasets", "peft", "pyarrow", "reasoning-gym", "numpy",
)  # fmt: skip
"""This package, and those that decide the numbers of a run."""


class RunManifest(Record):
    """What a run was made with.

    Attributes:
        name: Name of the run.
        seed: Its seed.
        versions: Package → version, of this package and of `PACKAGES`.
        git_commit: Commit of the checkout that the code lies in, if it lies in one.
        stages: When each stage ran, over all calls of the run.
        fingerprints: Stage → fingerprint.
    """

    name: str
    seed: int
    versions: dict[str, str]
    git_commit: str | None
    stages: tuple[StageTime, ...]
    fingerprints: dict[str, str]

    @classmethod
    def read(cls, folder: Path) -> RunManifest:
        """Reads the manifest of a run. Raises `ArtifactError` if the file is missing or damaged."""
        return cls.read_file(folder / MANIFEST, "delete it, and the same command goes on without it")

    def write(self, folder: Path) -> None:
        """Writes the manifest into a run's folder."""
        self.put_file(folder / MANIFEST)


class Logbook:
    """Keeps the manifest of a run in progress."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        earlier = RunManifest.read(graph.root).stages if remote.exists(graph.root / MANIFEST) else ()
        self.stages = tuple(stage.model_copy(update={"status": "reused"}) for stage in earlier)
        self.save()

    def add(self, name: str, started: float, finished: float) -> None:
        """Records a stage that ran, from start to end in seconds since 1970."""
        ran = StageTime(
            name=name, started=started, finished=finished, seconds=round(finished - started, 2), status="ran"
        )
        self.stages = (*(stage for stage in self.stages if stage.name != name), ran)  # --fresh made it again
        self.save()

    def save(self) -> None:
        """Writes the file."""
        config = self._graph.config
        RunManifest(
            name=config.name,
            seed=config.seed,
            versions=versions(),
            git_commit=git_commit(),
            stages=self.stages,
            fingerprints={stage.name: stage.fingerprint for stage in self._graph.stages()},
        ).write(self._graph.root)


def versions() -> dict[str, str]:
    """Versions of this package and of those that decide its numbers."""
    return {name: metadata.version(name) for name in PACKAGES}


def git_commit() -> str | None:
    """The commit of the checkout this package lies in, with `-dirty` if it was changed. None outside a checkout."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
