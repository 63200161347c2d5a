"""Files that an earlier version left: a run of configs/quickstart.yaml, without its weights and most of its examples.

Its stages must stay the same ones, or every run that exists would be done again.
"""

from pathlib import Path

import pytest

from ensemw2s.boosting.masks import read_mask
from ensemw2s.boosting.records import RoundRecord, members_of
from ensemw2s.config import load_config
from ensemw2s.config.systems import SYSTEMS_BEFORE
from ensemw2s.ensemble.manifest import read_manifest
from ensemw2s.pipeline.build import build_graph
from ensemw2s.pipeline.manifest import RunManifest
from ensemw2s.pipeline.votes import with_votes
from ensemw2s.storage import store

OLDER = Path(__file__).parents[1] / "older_run"
ROOT = Path(__file__).parents[2]
NO_PASSES = "consensus.passes=0"
"""As the recipe was then."""


@pytest.mark.parametrize("source", ["configs/quickstart.yaml", "tests/older_run/config.yaml"])
def test_every_stage_has_the_fingerprint_it_had(source: str) -> None:
    systems = ", ".join(SYSTEMS_BEFORE)
    former = [f"evaluation.systems=[{systems}]", "evaluation.single_base=first", NO_PASSES]
    stages = build_graph(load_config(ROOT / source, former)).stages()
    assert {stage.name: stage.fingerprint for stage in stages} == RunManifest.read(OLDER).fingerprints


@pytest.mark.parametrize("name", ["rounds/1", "ensemble"])
def test_a_marker_is_recognised(name: str) -> None:
    graph = build_graph(load_config(ROOT / "configs/quickstart.yaml", [NO_PASSES]))
    stages = {stage.name: stage for stage in graph.stages()}
    assert store.is_done(OLDER / name, stages[name].description)


def test_the_rounds_of_results_are_read_and_written_without_a_change() -> None:
    rounds = store.read_json(OLDER / "results.json")["rounds"]
    records = [RoundRecord.model_validate(found) for found in rounds]
    assert [record.model_dump(mode="json") for record in records] == rounds
    assert [member.round for member in members_of(records)] == [1, 2, 3, 4, 5]


def test_the_rounds_take_the_votes_of_the_ensemble_and_stay_as_they_were() -> None:
    records = [RoundRecord.model_validate(found) for found in store.read_json(OLDER / "results.json")["rounds"]]
    assert with_votes(records, read_manifest(OLDER / "ensemble").members) == records


def test_the_error_mask_of_a_round_fits_its_record() -> None:
    [expert] = RoundRecord.read(OLDER / "rounds/1").experts
    mask = read_mask(OLDER / "rounds/1/errors.parquet")
    assert mask.mean() == pytest.approx(expert.error)
    assert (mask == read_mask(OLDER / "rounds/1/errors.parquet", "expert_0")).all()
