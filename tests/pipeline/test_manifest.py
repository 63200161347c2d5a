"""The manifest of a run, over several calls of it."""

import shutil
from pathlib import Path

from ensemw2s.pipeline.manifest import PACKAGES, Logbook, RunManifest

from .test_build import graph

OLDER = Path(__file__).parents[1] / "older_run"


def test_an_older_manifest_is_written_again_to_the_byte(tmp_path):
    RunManifest.read(OLDER).write(tmp_path)
    assert (tmp_path / "manifest.json").read_bytes() == (OLDER / "manifest.json").read_bytes()


def test_every_stage_that_ran_is_written_at_once(tmp_path):
    made = graph(storage=str(tmp_path))
    made.root.mkdir()
    logbook = Logbook(made)
    logbook.add("data", 100.0, 101.234)
    found = RunManifest.read(made.root)
    [stage] = found.stages
    assert (stage.name, stage.started, stage.seconds, stage.status) == ("data", 100.0, 1.23, "ran")
    assert found.fingerprints == {stage.name: stage.fingerprint for stage in made.stages()}
    assert found.versions.keys() == {"ensemw2s", *PACKAGES}


def test_stages_of_an_earlier_call_are_reused_unless_they_ran_again(tmp_path):
    made = graph(storage=str(tmp_path))
    made.root.mkdir()
    shutil.copy(OLDER / "manifest.json", made.root)
    names = [stage.name for stage in RunManifest.read(OLDER).stages]
    assert "labels" in names
    Logbook(made).add("labels", 1.0, 2.0)
    *earlier, last = RunManifest.read(made.root).stages
    assert {stage.status for stage in earlier} == {"reused"}
    assert [stage.name for stage in earlier] == [name for name in names if name != "labels"]
    assert (last.name, last.status) == ("labels", "ran")
