"""A run that began with former defaults goes on with them, whatever the defaults are today."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from ensemw2s.config import Config, dump_config, load_config
from ensemw2s.config.systems import ALL_SYSTEMS, SYSTEMS_BEFORE
from ensemw2s.pipeline.begun import as_begun
from ensemw2s.pipeline.build import build_graph
from ensemw2s.pipeline.manifest import RunManifest

OLDER = Path(__file__).parents[1] / "older_run"


def quickstart(storage: Path, **values: Any) -> Config:
    return load_config("quickstart", [f"{key}={value}" for key, value in {"storage": storage, **values}.items()])


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A storage in which quickstart was run by version 0.1."""
    (tmp_path / "quickstart").mkdir()
    shutil.copy(OLDER / "config.yaml", tmp_path / "quickstart")
    return tmp_path


def test_an_older_run_has_the_stages_it_had_and_people_are_told_why(begun: Path) -> None:
    found, said = as_begun(quickstart(begun, **{"consensus.passes": 0}))  # the recipe had none then
    stages = build_graph(found).stages()
    assert {stage.name: stage.fingerprint for stage in stages} == RunManifest.read(OLDER).fingerprints
    assert "evaluation.systems and evaluation.single_base" in said
    assert "--fresh" in said


def test_systems_that_are_named_are_compared_whatever_the_run_began_with(begun: Path) -> None:
    named = quickstart(begun, **{"evaluation.systems": "[ensemw2s]", "evaluation.single_base": "best"})
    assert as_begun(named) == (named, "")


def test_systems_that_were_never_the_default_are_no_reason_to_keep_them(begun: Path) -> None:
    other = quickstart(begun, **{"evaluation.systems": "[ensemw2s]", "evaluation.single_base": "best"})
    (begun / "quickstart" / "config.yaml").write_text(dump_config(other), encoding="utf-8")
    assert as_begun(quickstart(begun)) == (quickstart(begun), "")


@pytest.mark.parametrize("text", ["", "evaluation: 3", "[", "evaluation: {systems: 3}"])
def test_a_run_that_is_new_or_says_nothing_has_the_default_of_today(text: str, tmp_path: Path) -> None:
    if text:
        (tmp_path / "quickstart").mkdir()
        (tmp_path / "quickstart" / "config.yaml").write_text(text, encoding="utf-8")
    config = quickstart(tmp_path)
    assert as_begun(config) == (config, "")


def test_the_last_generation_joins_what_the_run_began_with(begun: Path) -> None:
    found, _ = as_begun(quickstart(begun, **{"student.generations": 2}))
    assert found.evaluation.systems == [s for s in ALL_SYSTEMS if s in {*SYSTEMS_BEFORE, "student_generations"}]
