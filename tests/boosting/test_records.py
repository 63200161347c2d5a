"""Records of rounds: files of an older run are read and written again without a change, damaged ones are refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from ensemw2s.boosting.records import BoostedExpert, RoundRecord, members_of
from ensemw2s.errors import ArtifactError

OLDER = Path(__file__).parents[1] / "older_run"


def older(t: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((OLDER / f"rounds/{t}/round.json").read_text())
    return found


@pytest.mark.parametrize("t", [1, 2])
def test_an_older_round_is_written_again_to_the_byte(t, tmp_path):
    RoundRecord.read(OLDER / f"rounds/{t}").write(tmp_path)
    assert (tmp_path / "round.json").read_text() == (OLDER / f"rounds/{t}/round.json").read_text()


def test_a_first_try_and_a_temperature_are_kept_where_there_are_any(tmp_path):
    content = older(2)
    content["experts"][0] |= {"first_try": {"tokens_trained": 20, "seconds": 1.0}, "temperature": 0.5}
    record = RoundRecord.model_validate(content)
    assert record.model_dump(mode="json") == content
    assert record.experts[0].first_try is not None
    assert record.experts[0].first_try.tokens_trained == 20
    assert record.experts[0].temperature == 0.5


def test_a_round_without_seconds_and_with_unknown_keys_is_read():
    content = older(1)
    del content["seconds"]
    assert RoundRecord.model_validate({**content, "later": 1}).model_dump(mode="json") == content


def test_a_record_cannot_be_changed():
    record = RoundRecord.read(OLDER / "rounds/1")
    with pytest.raises(ValueError, match="frozen"):
        record.alpha = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "cannot be read"), ('{"round": 1}', r"alpha: Field required.*delete its folder"), (None, "cannot")],
)
def test_a_missing_or_damaged_file_is_refused_with_what_to_do(content, said, tmp_path):
    if content is not None:
        (tmp_path / "round.json").write_text(content)
    with pytest.raises(ArtifactError, match=said):
        RoundRecord.read(tmp_path)


def test_members_are_the_experts_of_all_rounds_with_their_round():
    members = members_of([RoundRecord.read(OLDER / f"rounds/{t}") for t in (1, 2)])
    assert [(m.round, m.name, m.base) for m in members] == [
        (1, "rounds/1/experts/0", "weak-0"),
        (2, "rounds/2/experts/0", "weak-1"),
    ]
    assert all(isinstance(m, BoostedExpert) for m in members)
    assert "temperature" not in members[0].model_dump()
