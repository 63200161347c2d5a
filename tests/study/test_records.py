"""Files of finished studies are read as records, whatever version wrote them, and written back unchanged."""

import gzip
import json
from pathlib import Path

import pytest

from ensemw2s.errors import ArtifactError
from ensemw2s.study.records import StudyResults, VariantDifference

STUDIES = Path(__file__).parents[2] / "docs" / "studies"


@pytest.mark.parametrize("name", ["confirm", "smollm2", "tiny"])
def test_a_study_is_written_back_key_by_key_in_its_order(tmp_path: Path, name: str) -> None:
    StudyResults.read(STUDIES / f"{name}.json").put_file(tmp_path / "study.json")
    old, new = (json.loads(path.read_text()) for path in (STUDIES / f"{name}.json", tmp_path / "study.json"))
    assert json.dumps(new) == json.dumps(old)


def test_a_compressed_study_of_an_older_version_is_read() -> None:
    study = StudyResults.read(STUDIES / "ablation.json.gz")
    assert (study.name, study.finished, study.resamples, study.pairs) == ("ablation", 290, None, ())
    [entry] = [entry for entry in study.variants if entry.variant == "boosting.rounds=6"]
    assert entry.of("ensemw2s", "validation").mean == pytest.approx(0.0114, abs=1e-4)
    assert entry.of("bagging", "validation") is None
    assert entry.tasks is None


def test_a_compressed_study_has_no_time_in_it() -> None:
    """Else the same content would be another file each time."""
    assert (STUDIES / "ablation.json.gz").read_bytes()[4:8] == bytes(4)


@pytest.mark.parametrize(
    "content",
    [b"no gzip", gzip.compress(b"{"), gzip.compress(b"{}" * 99)[:-9]],
    ids=["no gzip", "no JSON", "cut off"],
)
def test_a_damaged_compressed_study_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "study.json.gz").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"study\.json\.gz cannot be read: "):
        StudyResults.read(tmp_path / "study.json.gz")


def test_what_is_no_study_says_which_key_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"damaged \(name: Field required\): run `ensemw2s study`"):
        StudyResults.read(tmp_path / "study.json")


def test_differences_stand_beside_the_variants_name_in_the_file() -> None:
    plain = {"variant": "v", "tasks": ["a"], "ensemw2s/id": None}
    entry = VariantDifference.model_validate(plain)
    assert entry.differences == {("ensemw2s", "id"): None}
    assert entry.model_dump(mode="json") == plain
