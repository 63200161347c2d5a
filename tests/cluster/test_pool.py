import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ensemw2s.cluster.pool import chunks, read_chunk
from ensemw2s.errors import DataError


def write(path, rows: int, group: int = 1000):
    pq.write_table(
        pa.table({"n": list(range(rows)), "text": [f"row {i}" for i in range(rows)]}), path, row_group_size=group
    )
    return path


def test_rows_are_divided_in_their_order_and_fields_are_passed_on(tmp_path):
    path = write(tmp_path / "a.parquet", 7)
    assert chunks(path, 3, split="id") == [
        {"path": str(path), "start": 0, "stop": 3, "split": "id"},
        {"path": str(path), "start": 3, "stop": 6, "split": "id"},
        {"path": str(path), "start": 6, "stop": 7, "split": "id"},
    ]


def test_an_empty_file_has_no_chunks(tmp_path):
    assert chunks(write(tmp_path / "a.parquet", 0), 3) == []


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 20))
def test_chunks_together_are_the_file_whatever_its_row_groups(tmp_path, rows, size, group):
    path = write(tmp_path / "a.parquet", rows, group)
    parts = [read_chunk(chunk) for chunk in chunks(path, size)]
    assert all(len(part) <= size for part in parts)
    assert pa.concat_tables(parts).equals(pq.read_table(path))


def test_only_the_row_groups_of_a_chunk_are_read(tmp_path, monkeypatch):
    path, read = write(tmp_path / "a.parquet", 40, 10), []
    real = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda self, i: read.append(i) or real(self, i))
    assert read_chunk({"path": str(path), "start": 15, "stop": 25})["n"].to_pylist() == list(range(15, 25))
    assert read == [1, 2]


def test_a_file_that_became_shorter_is_noticed(tmp_path):
    path = write(tmp_path / "a.parquet", 7)
    last = chunks(path, 3)[-1]
    write(path, 5)
    with pytest.raises(DataError, match=r"a.parquet has 5 rows, expected at least 7: was it changed during the run"):
        read_chunk(last)
