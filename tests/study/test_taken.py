"""Cells whose rows stand in results that were made elsewhere: what is taken, what is not, and that it is kept."""

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from ensemw2s.config.study import StudyConfig
from ensemw2s.errors import ConfigError
from ensemw2s.progress import Progress
from ensemw2s.storage import store
from ensemw2s.study import study as studies
from ensemw2s.study.cells import Cell, expand
from ensemw2s.study.records import StudyResults
from ensemw2s.study.report import facts
from ensemw2s.study.rows import SCHEMA
from ensemw2s.study.survey import StudyPlanRecord, print_plan, survey
from ensemw2s.study.taken import TAKEN, take

from ..config.test_study import RUN
from .conftest import rows_of

ROOT = Path(__file__).parents[2]


def study(folder: Path, **values: Any) -> StudyConfig:
    systems = {"evaluation": {"systems": ["ensemw2s"]}, "boosting": {"rounds": 2}}
    given = {"name": "here", "storage": str(folder), "base": RUN | systems, "seeds": [0, 1], "resamples": 100}
    return StudyConfig.model_validate(given | values)


def committed(file: Path, cells: list[Cell], **changes: Any) -> Path:
    """Results of these cells under the names of another study, as one commits them."""
    rows = []
    for cell in cells:
        own = {"study": "there", "fingerprint": cell.graph.evaluation.fingerprint, **changes}
        rows += [{**row, **own} for row in rows_of("other", cell.seed)]
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), file)
    return file


@pytest.mark.parametrize("given", ["study.parquet", "study.json", "study.json.gz", ""])
def test_rows_with_a_cells_fingerprint_are_its_rows_under_its_own_names(tmp_path, given) -> None:
    cells = expand(study(tmp_path))
    committed(tmp_path / "there" / "study.parquet", cells[:1])
    found = take(cells, tmp_path / "here", [tmp_path / "there" / given], keep=False)
    assert found.keys() == {cells[0].name}
    assert {(row.study, row.task, row.variant, row.seed) for row in found[cells[0].name].rows} == {
        ("here", "base", "default", 0)
    }
    assert len(found[cells[0].name].rows) == len(rows_of("other", 0))
    assert not (tmp_path / "here").exists(), "a plan changes nothing"


def test_a_cell_with_another_setting_or_seed_is_not_taken(tmp_path) -> None:
    cells = expand(study(tmp_path))
    other = expand(study(tmp_path, set={"boosting.shrinkage": 0.7}))
    file = committed(tmp_path / "study.parquet", [*other, *expand(study(tmp_path, seeds=[5]))])
    assert take(cells, tmp_path / "here", [file], keep=True) == {}
    assert take(other, tmp_path / "here", [file], keep=False).keys() == {cell.name for cell in other}


def test_what_is_done_here_is_not_taken_and_what_was_taken_once_is_known_without_the_file(tmp_path) -> None:
    cells = expand(study(tmp_path))
    folder = tmp_path / "here"
    folder.mkdir()
    file = committed(tmp_path / "there.parquet", cells)
    store.resume(cells[0].graph.evaluation.path, cells[0].graph.evaluation.description)
    store.finish(cells[0].graph.evaluation.path, cells[0].graph.evaluation.description)
    found = take(cells, folder, [file], keep=True)
    assert found.keys() == {cells[1].name}
    file.unlink()
    assert take(cells, folder, [], keep=True) == found
    assert (folder / TAKEN).is_file()


def test_variants_that_are_the_same_run_have_the_rows_of_one(tmp_path) -> None:
    cells = expand(study(tmp_path, seeds=[0], factors={"boosting.rounds": [2]}))
    assert len({cell.graph.evaluation.fingerprint for cell in cells}) == 1
    file = committed(tmp_path / "there.parquet", cells)
    found = take(cells, tmp_path / "here", [file], keep=False)
    assert {name: {row.variant for row in taken.rows} for name, taken in found.items()} == {
        "base, default, seed 0": {"default"},
        "base, boosting.rounds=2, seed 0": {"boosting.rounds=2"},
    }


def test_files_without_rows_are_refused_by_name(tmp_path) -> None:
    cells = expand(study(tmp_path))
    with pytest.raises(ConfigError, match=r"--from .*ablation\.json\.gz: there is no file .*ablation\.parquet; give a"):
        take(cells, tmp_path, [tmp_path / "ablation.json.gz"], keep=False)
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(ConfigError, match=r"--from .*text\.parquet cannot be read"):
        take(cells, tmp_path, [tmp_path / "text.parquet"], keep=False)
    pq.write_table(pa.table({"task": ["a"]}), tmp_path / "trials.parquet")
    with pytest.raises(ConfigError, match=r"has no rows of a study: it lacks the column fingerprint"):
        take(cells, tmp_path, [tmp_path / "trials.parquet"], keep=False)


def test_a_plan_says_what_is_taken_from_where_and_counts_no_work_for_it(tmp_path) -> None:
    cells = expand(study(tmp_path))
    file = committed(tmp_path / "there.parquet", cells[1:])
    found = survey(cells, take(cells, tmp_path / "here", [file], keep=False))
    console = Console(file=io.StringIO(), width=500)
    print_plan(found, console)
    shown = " ".join(console.file.getvalue().split())
    assert f"base default 1 taken from {file}" in shown
    assert f"0 of 2 cells are done. 1 is taken from {file}. The others share" in shown
    assert found.steps == survey(cells[:1]).steps
    print_plan(survey(cells, {}, [file]), console)
    assert f"0 are taken from {file}." in " ".join(console.file.getvalue().split())
    first, second = StudyPlanRecord.of("here", found).model_dump(mode="json")["cells"]
    assert (first["complete"], "taken" in first) == (False, False)
    assert (second["complete"], second["taken"]) == (True, str(file))


def test_a_study_runs_nothing_that_is_taken_and_reports_all(tmp_path, monkeypatch) -> None:
    wanted = study(tmp_path)
    cells = expand(wanted)
    file = committed(tmp_path / "there.parquet", cells)
    written: dict[str, Any] = {}

    def write(*args: Any) -> Any:
        written["rows"], written["taken"] = args[1], args[6]
        written["missing"] = args[3]

    monkeypatch.setattr(studies, "connect", None)
    monkeypatch.setattr(studies.report, "write", write)
    monkeypatch.setattr(studies, "show", lambda *_: None)
    out = io.StringIO()
    studies.run(wanted, sources=[file], progress=Progress(Console(file=out, width=500)))
    assert written["taken"] == {str(file): 2}
    assert written["missing"] == []
    assert {(row["study"], row["task"], row["seed"]) for row in written["rows"].to_pylist()} == {
        ("here", "base", 0),
        ("here", "base", 1),
    }
    assert f"2 of 2 cells are taken from {file}" in out.getvalue()


def test_a_report_says_how_many_cells_are_from_which_file() -> None:
    results = StudyResults.read(ROOT / "docs" / "studies" / "tiny.json")
    assert "taken" not in results.model_dump()
    assert "cells taken from" not in dict(facts(results))
    joined = StudyResults.model_validate({**results.model_dump(), "taken": {"there.parquet": 2}})
    assert ("cells taken from", "there.parquet (2)") in facts(joined)
    assert joined.model_dump()["taken"] == {"there.parquet": 2}
