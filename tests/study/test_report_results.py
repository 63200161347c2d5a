"""docs/results.md: written by docs/refresh_results.py from study.json alone, with all that the reports say."""

import re
import runpy
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ensemw2s.config.study import StudyConfig
from ensemw2s.storage import store
from ensemw2s.study import report, tables
from ensemw2s.study.records import StudyResults
from ensemw2s.study.rows import SCHEMA

from .conftest import rows_of

ROOT = Path(__file__).parents[2]
ROWS = [r for seed in (0, 1, 2) for r in rows_of("a", seed)]
refresh = runpy.run_path(str(ROOT / "docs" / "refresh_results.py"))


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    report.write(
        StudyConfig(name="small", base={}),
        pa.Table.from_pylist(ROWS, schema=SCHEMA),
        {"b, default, seed 0": "no room"},
        ["b, default, seed 0"],
        folder,
    )
    return folder


def test_the_page_has_every_table_verdict_and_failure(folder) -> None:
    summary = StudyResults.read(folder / "study.json")
    page = refresh["page"]([summary, summary.model_copy(update={"name": "second"})])
    assert page.startswith("# Results\n\n<!-- Written by")
    for sheet in tables.sheets(summary):
        assert report.markdown(sheet) in page
    assert "- EnsemW2S ensemble minus bagging on ID: +3.0" in page
    assert "Failed: b, default, seed 0: no room" in page
    assert "commit" in page
    headings = re.findall(r"^#+ (.*)$", page, flags=re.MULTILINE)
    assert len(headings) == len(set(headings)), "two headings with one name share an anchor"


def test_without_a_study_no_page_is_written() -> None:
    with pytest.raises(SystemExit, match=r"Each argument is the study\.json of a study"):
        refresh["main"]([])


def test_a_study_is_named_by_its_file_or_by_its_folder(folder) -> None:
    assert refresh["read"]([folder]) == refresh["read"]([folder / "study.json"])


def test_rows_beside_a_study_are_what_its_statistics_are_made_from(folder, tmp_path) -> None:
    told = store.read_json(folder / "study.json")
    store.put_json(tmp_path / "small.json", {**told, "comparisons": [], "systems": told["systems"][:1]})
    assert refresh["read"]([tmp_path / "small.json"]) != refresh["read"]([folder])
    pq.write_table(pa.Table.from_pylist(ROWS, schema=SCHEMA), tmp_path / "small.parquet")
    assert refresh["read"]([tmp_path / "small.json"]) == refresh["read"]([folder])


@pytest.mark.slow
def test_the_committed_page_is_that_of_the_committed_studies() -> None:
    page, studies = ROOT / "docs" / "results.md", sorted((ROOT / "docs" / "studies").glob("*.json*"))
    committed = page.read_text(encoding="utf-8") if page.exists() else None
    assert committed == (refresh["read"](studies) if studies else None)
    for path in studies:
        assert StudyResults.read(path).name == path.name.split(".")[0]
