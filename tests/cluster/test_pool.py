import pickle
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ensemw2s.cluster.pool import Chunk, Pool, _Kept, chunks
from ensemw2s.config import LabelingConfig
from ensemw2s.errors import DataError


def write(path, rows: int, group: int = 1000):
    pq.write_table(
        pa.table({"n": list(range(rows)), "text": [f"row {i}" for i in range(rows)]}), path, row_group_size=group
    )
    return path


def test_rows_are_divided_in_their_order_with_a_path_that_holds_anywhere(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", 7)
    monkeypatch.chdir(tmp_path)
    found = chunks(Path("a.parquet"), 3)
    assert found == [Chunk(path, 0, 3), Chunk(path, 3, 6), Chunk(path, 6, 7)]
    assert [chunk.rows for chunk in found] == [3, 3, 1]


def test_an_empty_file_has_no_chunks(tmp_path):
    assert chunks(write(tmp_path / "a.parquet", 0), 3) == []


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 20))
def test_chunks_together_are_the_file_whatever_its_row_groups(tmp_path, rows, size, group):
    path = write(tmp_path / "a.parquet", rows, group)
    parts = [chunk.read() for chunk in chunks(path, size)]
    assert all(len(part) <= size for part in parts)
    assert pa.concat_tables(parts).equals(pq.read_table(path))


def test_only_the_row_groups_of_a_chunk_are_read(tmp_path, monkeypatch):
    path, read = write(tmp_path / "a.parquet", 40, 10), []
    real = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda self, i: read.append(i) or real(self, i))
    assert Chunk(path, 15, 25).read()["n"].to_pylist() == list(range(15, 25))
    assert read == [1, 2]


def test_a_file_that_became_shorter_is_noticed(tmp_path):
    path = write(tmp_path / "a.parquet", 7)
    last = chunks(path, 3)[-1]
    write(path, 5)
    with pytest.raises(DataError, match=r"a.parquet has 5 rows, expected at least 7: was it changed during the run"):
        last.read()


def test_a_pool_has_the_size_that_the_config_asks_for():
    labeling = LabelingConfig(cpus_per_actor=2, gpus_per_actor=0.5, node_resource="decoding", min_actors=2)
    assert Pool.of(labeling, 7) == Pool(cpus=2, gpus=0.5, node_resource="decoding", smallest=2, largest=7)


class Opened:
    """Adds; counts how often it is made."""

    made = 0
    last: "weakref.ref[Opened]"
    gone = threading.Event()

    def __init__(self, plus: int) -> None:
        self.plus = plus
        Opened.made += 1
        Opened.last = weakref.ref(self, lambda _: Opened.gone.set())
        Opened.gone.clear()

    def __call__(self, work: int) -> int:
        return work + self.plus


@dataclass(frozen=True)
class Adding:
    plus: int

    def open(self) -> Opened:
        return Opened(self.plus)


def test_a_pooled_process_keeps_its_worker_from_one_piece_to_the_next_and_opens_another_for_other_work():
    kept, before = _Kept(idle=60), Opened.made
    one, other = pickle.dumps(Adding(1)), pickle.dumps(Adding(2))
    assert [kept.run(one, 5), kept.run(one, 6), kept.run(other, 5)] == [6, 7, 7]
    assert Opened.made == before + 2


def test_a_pooled_process_lets_go_of_a_worker_that_nobody_asks_for_and_opens_it_again():
    kept, packed = _Kept(idle=0.01), pickle.dumps(Adding(1))
    assert kept.run(packed, 5) == 6
    assert Opened.gone.wait(20)
    assert Opened.last() is None
    assert kept.run(packed, 7) == 8
