"""Records: the content of a JSON file as frozen fields, read and written in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from ensemw2s.errors import ArtifactError
from ensemw2s.storage import remote, store


class Record(BaseModel):
    """Plain values that do not change. Keys that a later version wrote are skipped."""

    model_config = ConfigDict(frozen=True)

    @classmethod
    def read_file(cls, path: Path) -> Self:
        """Reads a file.

        Raises:
            ArtifactError: If it is missing or damaged.
        """
        try:
            return cls.model_validate(store.read_json(path))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ArtifactError(
                f"{remote.shown(path)} is damaged ({where}: {first['msg']}): delete its folder to redo it"
            ) from None

    def write_file(self, path: Path) -> None:
        """Writes a file atomically."""
        store.write_json(path, self.model_dump(mode="json"))
