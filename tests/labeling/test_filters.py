import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ensemw2s.config import LabelFilter
from ensemw2s.errors import DataError
from ensemw2s.labeling.filters import passing, write_kept
from ensemw2s.labeling.parts import KEPT, part_name, write_part


def labels(agreement: list[float], **columns: list) -> pa.Table:
    n = len(agreement)
    return pa.table(
        {"id": [f"p{i}" for i in range(n)], "answer": ["7"] * n, "finish_reason": ["stop"] * n, "agreement": agreement}
        | columns
    )


def kept(table: pa.Table, **wanted: float) -> list[int]:
    return np.flatnonzero(passing(table, LabelFilter(**wanted))).tolist()


def test_without_a_filter_finished_labels_pass_that_are_not_empty():
    table = labels([0.1] * 4, answer=["1", "", "2", "3"], finish_reason=["stop", "stop", "length", "stop"])
    assert kept(table) == [0, 3]


def test_agreement_and_consistency_are_lower_bounds():
    table = labels([0.5, 0.8, 0.9, 0.8], consistency=[1.0, 0.25, 0.5, 0.75])
    assert kept(table, min_agreement=0.8) == [1, 2, 3]
    assert kept(table, min_consistency=0.5) == [0, 2, 3]
    assert kept(table, min_agreement=0.8, min_consistency=0.5) == [2, 3]


def test_the_fraction_is_of_what_is_left_and_of_equal_ones_the_first_stay():
    table = labels([0.9, 0.7, 0.9, 0.8, 0.9, 0.1], finish_reason=["length", *["stop"] * 5])
    assert kept(table, keep_fraction=0.4) == [2, 4]
    assert kept(table, keep_fraction=0.2) == [2]
    assert kept(table, keep_fraction=0.001) == [2]
    assert kept(table, min_agreement=0.75, keep_fraction=0.67) == [2, 4]
    assert kept(table, min_agreement=0.95, keep_fraction=0.5) == []


def test_consistency_of_labels_without_samples_is_an_error():
    with pytest.raises(DataError, match="min_consistency needs labels that were chosen among several samples"):
        passing(labels([0.5]), LabelFilter(min_consistency=0.1))


def test_kept_labels_lie_beside_all_part_by_part(tmp_path):
    agreement = [0.9, 0.1, 0.8, 0.2, 0.7]
    table = labels(agreement)
    for start in (0, 2, 4):
        write_part(table.slice(start, 2), tmp_path / part_name(start))
    before = (tmp_path / part_name(0)).read_bytes()
    assert write_kept(tmp_path, LabelFilter(min_agreement=0.5)) == 3
    found = [pq.read_table(f)["id"].to_pylist() for f in sorted((tmp_path / KEPT).iterdir())]
    assert found == [["p0"], ["p2"], ["p4"]]
    assert write_kept(tmp_path, LabelFilter(keep_fraction=0.2)) == 1  # another filter replaces it
    assert [pq.read_table(f)["id"].to_pylist() for f in sorted((tmp_path / KEPT).iterdir())] == [["p0"], [], []]
    assert (tmp_path / part_name(0)).read_bytes() == before
