import os

import pyarrow as pa
import pytest

from ensemw2s.errors import ResourceError
from ensemw2s.labeling.parts import REJECTED, part_name, read_labels, remove_unfinished, write_part
from ensemw2s.storage import remote


def test_names_of_parts_sort_in_the_order_of_the_prompts():
    starts = [0, 25, 500, 1000, 20_000, 3_000_000_000]
    names = [part_name(start) for start in starts]
    assert names[1] == "part-0000000025.parquet"
    assert sorted(names) == names


def test_parts_are_read_in_order_and_half_written_ones_are_not_parts(tmp_path):
    for start in (50, 0, 1000):
        write_part(pa.table({"start": [start, start + 1]}), tmp_path / part_name(start))
    (tmp_path / ".part-0000000010.parquet.0123.tmp").write_bytes(b"half")
    assert read_labels(tmp_path)["start"].to_pylist() == [0, 1, 50, 51, 1000, 1001]


def test_a_part_that_cannot_be_written_leaves_nothing_and_says_so(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ResourceError, match=r"part-0.parquet cannot be written \(No space left on device\); what is"):
        write_part(pa.table({"a": [1]}), tmp_path / "part-0.parquet")
    assert list(tmp_path.iterdir()) == []


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path):
    write_part(pa.table({"a": [1]}), tmp_path / part_name(0))
    write_part(pa.table({"a": [1]}), tmp_path / REJECTED / part_name(0))
    kept = {path for path in tmp_path.rglob("*") if path.is_file()}
    for folder in (tmp_path, tmp_path / REJECTED):
        (folder / ".part-0000000010.parquet.0123abcd.tmp").write_bytes(b"half")
    remove_unfinished(tmp_path)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == kept


def test_parts_that_other_machines_wrote_to_object_storage_are_read(bucket, tmp_path, monkeypatch):
    for machine, start in (("one", 0), ("two", 50)):
        monkeypatch.setenv("ENSEMW2S_SCRATCH", str(tmp_path / machine))
        folder = remote.local(f"s3://{bucket.name}/labels")
        write_part(pa.table({"start": [start]}), folder / part_name(start))
    assert read_labels(folder)["start"].to_pylist() == [0, 50]
    assert set(bucket.objects()) == {f"labels/{part_name(start)}" for start in (0, 50)}
