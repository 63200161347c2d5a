from pathlib import Path

import pyarrow as pa
import pytest

from ensemw2s.labeling.parts import REJECTED, REJECTED_SCHEMA, part_name, write_part
from ensemw2s.labeling.summary import SUMMARY, LabelSummary, summarise


def part(agreement: list[float], n_tokens: list[int], reasons: list[str], **more) -> pa.Table:
    n = len(agreement)
    return pa.table(
        {
            "agreement": agreement,
            "vote_entropy": [0.7 * (1 - a) for a in agreement],
            "n_tokens": pa.array(n_tokens, pa.int32()),
            "logprob": [-float(k) for k in n_tokens],
            "finish_reason": pa.array(reasons, pa.string()),
        }
        | {name: values[:n] for name, values in more.items()}
    )


@pytest.fixture
def folder(tmp_path):
    """Three parts, one of them empty, and three rejected prompts."""
    write_part(part([1.0, 0.5], [3, 8], ["stop", "length"]), tmp_path / part_name(0))
    write_part(part([0.52], [3], ["stop"]), tmp_path / part_name(2))
    write_part(part([], [], []), tmp_path / part_name(4))
    for name, reasons in (
        ("input", ["line 3 is not JSON"]),
        ("part-1", ["40 tokens, 10 allowed", "9 tokens, 10 allowed"]),
    ):
        rows = [{"id": None, "prompt": None, "reason": reason} for reason in reasons]
        write_part(pa.Table.from_pylist(rows, schema=REJECTED_SCHEMA), tmp_path / REJECTED / f"{name}.parquet")
    return tmp_path


def test_counts_and_means_are_of_all_parts(folder):
    facts = summarise(folder)
    assert (facts.labels, facts.tokens, facts.rejected) == (3, 14, 3)
    assert facts.finish_reasons == {"length": 1, "stop": 2}
    assert facts.reasons == {"N tokens, N allowed": 2, "line N is not JSON": 1}
    assert facts.means["agreement"] == pytest.approx(2.02 / 3)
    assert facts.means["logprob"] == pytest.approx(-14 / 3)
    assert "consistency" not in facts.means


def test_every_label_is_in_each_histogram_once(folder):
    histograms = summarise(folder).histograms
    assert set(histograms) == {"agreement", "vote_entropy", "n_tokens", "logprob"}
    for found in histograms.values():
        assert len(found.edges) == len(found.counts) + 1
        assert list(found.edges) == sorted(set(found.edges))
        assert sum(found.counts) == 3
    shares = histograms["agreement"]
    assert {round(shares.edges[i], 2): n for i, n in enumerate(shares.counts) if n} == {0.5: 2, 0.95: 1}
    assert histograms["n_tokens"].counts[-1] == 1  # the longest is in the last


def test_consistency_is_shown_where_labels_have_it(tmp_path):
    write_part(part([1.0, 0.5], [3, 8], ["stop"] * 2, consistency=[0.25, 1.0]), tmp_path / part_name(0))
    assert sum(summarise(tmp_path).histograms["consistency"].counts) == 2


def test_a_folder_with_no_labels_has_a_summary_too(tmp_path):
    write_part(part([], [], []), tmp_path / part_name(0))
    facts = summarise(tmp_path)
    facts.write(tmp_path)
    assert facts == LabelSummary.read(tmp_path)
    assert (facts.labels, facts.means, facts.histograms) == (0, {}, {})


def test_the_summary_of_an_older_run_is_read_and_written_as_it_was(tmp_path):
    older = Path(__file__).parents[1] / "older_run/labels"
    summary = LabelSummary.read(older)
    assert (summary.labels, len(summary.histograms)) == (2000, 4)
    summary.write(tmp_path)
    assert (tmp_path / SUMMARY).read_text() == (older / SUMMARY).read_text()
