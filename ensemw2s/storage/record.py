"""What every record of a file has in common: it never changes, and damage in its file is named."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from ensemw2s.errors import ArtifactError
from ensemw2s.storage import store
from ensemw2s.storage.remote import shown


class Record(BaseModel):
    """Values that do not change once they are made. Keys of later versions are skipped."""

    model_config = ConfigDict(frozen=True)

    @classmethod
    def of_file(cls, path: Path, value: object, advice: str) -> Self:
        """The record that a file's JSON holds.

        Args:
            path: The file, for the message.
            value: Its content as plain values.
            advice: What to do when the content is no such record.

        Raises:
            ArtifactError: Names the file and the first key that is wrong.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            said = f"{where}: {first['msg']}" if where else first["msg"]
            raise ArtifactError(f"{shown(path)} is damaged ({said}): {advice}") from None

    def to_file(self, path: Path) -> None:
        """Writes the record as JSON, atomically, and where `path` mirrors object storage, there."""
        store.put_json(path, self.model_dump(mode="json"))
