import pyarrow as pa
import pytest

from ensemw2s.config import LabelingConfig
from ensemw2s.ensemble.voter import Voter
from ensemw2s.errors import DataError
from ensemw2s.labeling.chunks import LabeledChunk, LabelJob
from ensemw2s.labeling.labels import _Rate, check_rejected
from ensemw2s.labeling.parts import REJECTED, REJECTED_SCHEMA, write_part


def result(actor: str, rows: int, rejected: int = 0, proposed: int = 0, accepted: int = 0) -> LabeledChunk:
    return LabeledChunk(rows, rejected, "", 6 * rows, actor, proposed, accepted, ("one pass",), began=0, ended=1)


def test_the_note_says_how_fast_it_goes_and_how_long_it_will_take(monkeypatch):
    monkeypatch.setattr("ensemw2s.labeling.labels.time.monotonic", lambda: 110.0)
    rate = _Rate(total=1000, before=400, rejected=1, began=100.0)
    rate.add(result("a", 100))
    assert rate.note() == "10 prompts/s, 60 tokens/s, 1 actor, 50 s left, 1 rejected (one pass)"
    rate.add(result("b", 100, rejected=3, proposed=40, accepted=10))
    rate.add(result("b", 100, proposed=80, accepted=40))  # of the actor so far, not of the chunk
    assert rate.note() == (
        "30 prompts/s, 180 tokens/s, 2 actors, 10 s left, 4 rejected, 50% of drafts accepted (one pass)"
    )


def test_rejected_prompts_count_from_all_sessions_and_against_each_job(tmp_path):
    jobs = [LabelJob(Voter(name=name), tmp_path / "prompts.parquet", tmp_path / name) for name in ("a", "b")]
    for job, total in zip(jobs, (2, 1), strict=True):
        for part in range(total):
            row = pa.Table.from_pylist([{"id": "1", "prompt": "x", "reason": "too long"}], schema=REJECTED_SCHEMA)
            write_part(row, job.output / REJECTED / f"part-{part}.parquet")
    check_rejected(jobs, LabelingConfig())
    check_rejected(jobs, LabelingConfig(max_rejected=2))
    with pytest.raises(
        DataError, match=r"2 rows cannot be labelled.*\(--max-rejected\) allows 1; the last reason: long"
    ):
        check_rejected(jobs, LabelingConfig(max_rejected=1), "long")
