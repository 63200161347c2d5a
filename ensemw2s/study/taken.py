"""Cells that need not run, because their rows stand in results that were made elsewhere: files in, rows by cell out.

A fingerprint stands for everything that a cell's figures depend on, so a row with the fingerprint of a cell is a row of
that cell, whoever made it. What was taken once is kept in the study's folder, and needs no option the next time.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ensemw2s.errors import ConfigError
from ensemw2s.pipeline import steps
from ensemw2s.storage import remote, store
from ensemw2s.study.cells import Cell
from ensemw2s.study.row import StudyRow
from ensemw2s.study.rows import SCHEMA

TAKEN = "taken.parquet"
"""In a study's folder: rows that were taken, each with the name of the file that it is from."""

SOURCE = "source"

NEEDED = {"study", "task", "variant", "seed", "system", "split", "fingerprint"}


@dataclass(frozen=True)
class Taken:
    """The rows of a cell that was run elsewhere.

    Attributes:
        source: The file that has them.
        rows: The rows, under the names that this study has for the cell.
    """

    source: str
    rows: tuple[StudyRow, ...]


def take(cells: Sequence[Cell], folder: Path, places: Sequence[Path], *, keep: bool) -> dict[str, Taken]:
    """The cells that need not run.

    Args:
        cells: All cells of the study; one that is done here is left out.
        folder: The study's folder.
        places: Files with rows, as `rows_file` takes them.
        keep: Write what was found into the study's folder. A plan changes nothing.

    Returns:
        Name of a cell → its rows.

    Raises:
        ConfigError: If a file is missing or has no rows of a study.
    """
    known = _remembered(folder)
    for place in places:
        known = {**_by_fingerprint(remote.shown(place), _read(place)), **known}
    open_cells = [cell for cell in cells if cell.graph.evaluation.fingerprint in known]
    found = {
        cell.name: _named(known[cell.graph.evaluation.fingerprint], cell)
        for cell in open_cells
        if not steps.done(cell.graph.evaluation)
    }
    if keep and places and found:
        _remember(folder, {**_remembered(folder), **{taken.rows[0].fingerprint: taken for taken in found.values()}})
    return found


def sources(taken: Mapping[str, Taken], places: Sequence[Path] = ()) -> dict[str, int]:
    """File → how many cells are taken from it; 0 for one of these places that has none."""
    found = Counter(own.source for own in taken.values())
    return {**dict(found.most_common()), **{name: 0 for name in map(remote.shown, places) if name not in found}}


def rows_file(place: Path) -> Path:
    """The file with rows that a person means: a study.parquet, the study.json beside it, or the folder of both."""
    if place.suffix == ".parquet":
        return place
    for ending in (".json", ".json.gz"):
        if place.name.endswith(ending):
            return place.with_name(f"{place.name.removesuffix(ending)}.parquet")
    return place / "study.parquet"


def _read(place: Path) -> list[dict[str, object]]:
    file = rows_file(place)
    if not remote.exists(file):
        raise ConfigError(
            f"--from {remote.shown(place)}: there is no file {remote.shown(file)}; give a study's folder or its "
            "study.parquet"
        )
    try:
        table = pq.read_table(remote.pull(file))
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"--from {remote.shown(file)} cannot be read: {error}") from None
    if missing := sorted(NEEDED - set(table.column_names)):
        raise ConfigError(f"--from {remote.shown(file)} has no rows of a study: it lacks the column {missing[0]}")
    found: list[dict[str, object]] = table.to_pylist()
    return found


def _by_fingerprint(source: str, rows: Iterable[Mapping[str, object]]) -> dict[str, Taken]:
    """Fingerprint → the rows of one cell; variants that are the same run have the same rows."""
    cells: dict[str, dict[tuple[str, str, int], list[StudyRow]]] = {}
    for value in rows:
        row = StudyRow.model_validate(value)
        cells.setdefault(row.fingerprint, {}).setdefault((row.task, row.variant, row.seed), []).append(row)
    return {fingerprint: Taken(source, tuple(next(iter(same.values())))) for fingerprint, same in cells.items()}


def _named(taken: Taken, cell: Cell) -> Taken:
    own = {"study": cell.config.name, "task": cell.task, "variant": cell.variant, "seed": cell.seed}
    return Taken(taken.source, tuple(row.model_copy(update=own) for row in taken.rows))


def _remembered(folder: Path) -> dict[str, Taken]:
    if not remote.exists(folder / TAKEN):
        return {}
    rows: dict[str, list[Mapping[str, object]]] = {}
    for row in store.read_table(folder / TAKEN).to_pylist():
        rows.setdefault(str(row[SOURCE]), []).append(row)
    return {fingerprint: t for source, own in rows.items() for fingerprint, t in _by_fingerprint(source, own).items()}


def _remember(folder: Path, taken: Mapping[str, Taken]) -> None:
    rows = [{**row.model_dump(), SOURCE: own.source} for own in taken.values() for row in own.rows]
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA.append(pa.field(SOURCE, pa.string()))), file)
    store.put_bytes(folder / TAKEN, file.getvalue())
