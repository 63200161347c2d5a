"""What every record of a file has in common: it never changes, and damage in its file is named."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ensemw2s.errors import ArtifactError
from ensemw2s.storage import store
from ensemw2s.storage.remote import shown

T = TypeVar("T")


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

    @classmethod
    def read_file(cls, path: Path, advice: str = "delete its folder to redo it") -> Self:
        """Reads the record that a file holds.

        Args:
            path: The file.
            advice: What to do when it is damaged.

        Raises:
            ArtifactError: If it is missing or damaged.
        """
        return cls.of_file(path, store.read_json(path), advice)

    def write_file(self, path: Path) -> None:
        """Writes the record as JSON into a folder that `store.publish` puts in place later."""
        store.write_json(path, self.model_dump(mode="json"))

    def put_file(self, path: Path) -> None:
        """Writes the record as JSON where its path says that it belongs, which may be object storage."""
        store.put_json(path, self.model_dump(mode="json"))


def _without_nulls(value: object) -> object:
    return {k: v for k, v in value.items() if v is not None} if isinstance(value, Mapping) else value


ByName = Annotated[dict[str, T], BeforeValidator(_without_nulls)]
"""Records by name; an entry that is null is left out."""


class SparseRecord(Record):
    """A record in which null means the same as absent."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: object) -> object:
        return _without_nulls(value)


def only_where_known() -> Any:
    """A field of a record that the JSON does not have where it is None."""
    return Field(None, exclude_if=lambda value: value is None)
