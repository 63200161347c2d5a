"""What a finished run can do without: weights of models that neither serving nor the same command again reads.

The ensemble has copies of its members, and students are models of their own, so both stay. So do all records, labels,
answers and figures. A stage that loses its weights loses its marker, too: whoever needs it later makes it again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ensemw2s.errors import ConfigError
from ensemw2s.evaluation.records import RESULTS
from ensemw2s.storage import remote
from ensemw2s.storage.store import MARKER, only_one

ON_THE_WAY = {
    "rounds": "members of the ensemble as they were trained; the ensemble has copies",
    "consensus": "members of consensus passes; the ensemble has copies of the last ones",
    "baselines": "experts that were trained for one system alone",
    "generations": "students that labelled for those of the next generation",
}
"""Folder of a run → what its models are, which are needed on the way to the figures alone."""


@dataclass(frozen=True)
class Part:
    """What cleaning frees below one folder of a run.

    Attributes:
        name: The folder.
        files: Files with weights.
        markers: Markers of the stages that are not done without these files.
        size: Size of the files in bytes.
    """

    name: str
    files: tuple[Path, ...]
    markers: tuple[Path, ...]
    size: int

    @property
    def what(self) -> str:
        return ON_THE_WAY[self.name]


def superfluous(run: Path) -> tuple[Part, ...]:
    """What can go from a finished run; folders without weights are left out.

    Raises:
        ConfigError: If the folder holds no run of this machine, or one that is not finished.
    """
    if remote.uri(run) is not None:
        raise ConfigError(f"{remote.shown(run)} is in object storage; clean takes a folder of this machine")
    if not (run / "config.yaml").is_file():
        raise ConfigError(f"{run} is no run; give the folder STORAGE/NAME of one")
    if not ((run / RESULTS).is_file() and (run / "evaluation" / MARKER).is_file()):
        raise ConfigError(f"{run} is not finished, so all of it is needed to go on; finish it first (ensemw2s run)")
    return tuple(part for name in ON_THE_WAY if (part := _part(run, name)).files)


def clean(run: Path) -> tuple[Part, ...]:
    """Frees what `superfluous` finds, markers first: a stage without its weights must not be taken as done.

    Raises:
        ConfigError: As `superfluous`.
        ResourceError: If the run is at work.
    """
    superfluous(run)  # says what is no run before a lock is left there
    with only_one(run):
        parts = superfluous(run)
        for part in parts:
            for path in (*part.markers, *part.files):
                path.unlink(missing_ok=True)
    return parts


def _part(run: Path, name: str) -> Part:
    files = sorted((run / name).rglob("*.safetensors"))
    markers = sorted({marker for file in files for marker in _markers(file, run)})
    return Part(name, tuple(files), tuple(markers), sum(file.stat().st_size for file in files))


def _markers(file: Path, run: Path) -> Iterator[Path]:
    """The markers of all stages that a file lies in: an expert lies in its round."""
    for folder in file.relative_to(run).parents:
        if (marker := run / folder / MARKER).is_file():
            yield marker
