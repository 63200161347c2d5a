"""Benchmarks run, on the smallest sizes: what the docs tell people to type does not rot. No figure is tested."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LIMIT = 900.0
"""Seconds that a benchmark may take before its test gives up; on two quiet cores none takes a tenth of it."""


@pytest.mark.processes
@pytest.mark.long
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_decode_compares_ways_that_give_the_same_answers(kind, tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "decode.py"), "--kind", kind, "--members", "2"]
    sizes = ["--batches", "2", "--new-tokens", "4", "--turns", "1", "--threads", "1", "--mixed", "16"]
    sizes += ["--mixed-tokenizers", "tiny"]
    file = tmp_path / "decode.json"
    done = subprocess.run(
        [*command, *sizes, "--output", str(file)], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    [row] = result["rows"]
    assert set(row["tokens_per_second"]) == {"standard", "alone", "engine", "engine_ngram", "engine_member"}
    assert set(row["same_answers"].values()) == {1.0}
    assert set(result["mixed_lengths"]["same_answers"].values()) == {1.0}
    assert len(result["mixed_tokenizers"]["passes_per_byte"]) == 2


@pytest.mark.processes
@pytest.mark.long
def test_train_compares_the_loop_with_a_bare_one(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "train.py"), "--stages", "1", "--steps", "8", "--turns", "1"]
    file = tmp_path / "train.json"
    done = subprocess.run(
        [*command, "--batch-size", "4", "--output", str(file)],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())["rows"]
    assert [row["way"] for row in rows] == ["bare", "zero_1", "zero_1_with_curves"]
    assert all(row["tokens_per_second"] > 0 for row in rows)


@pytest.mark.processes
def test_costs_compares_the_model_of_time_with_every_speed_that_was_measured(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "costs.py"), "--output", str(tmp_path / "costs.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "costs.json").read_text())["rows"]
    recorded = json.loads((ROOT / "benchmarks" / "results" / "costs-cpu.json").read_text())["rows"]
    assert [(row["what"], row["measured"]) for row in rows] == [(row["what"], row["measured"]) for row in recorded]


@pytest.mark.ray
@pytest.mark.long
def test_serve_compares_the_endpoint_with_the_engine(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "serve.py"), "--members", "2", "--streams", "2"]
    sizes = ["--slots", "2", "--new-tokens", "6", "--rounds", "1", "--turns", "1", "--long-tokens", "40"]
    file = tmp_path / "serve.json"
    done = subprocess.run(
        [*command, *sizes, "--short-count", "2", "--output", str(file)],
        capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    [row] = result["rows"]
    assert row["served_over_engine"] > 0
    assert row["time_to_first_token_ms"]["p50"] <= row["time_to_first_token_ms"]["p99"]
    assert result["beside_a_long_request"]["requests_beside"] >= 1


@pytest.mark.ray
@pytest.mark.long
def test_serve_against_compares_two_versions_of_the_endpoint(tmp_path):
    """The other version is this one, as a folder."""
    command = [sys.executable, str(ROOT / "benchmarks" / "serve_against.py"), str(ROOT), "--members", "2"]
    sizes = ["--slots", "2", "--streams", "2", "--new-tokens", "6", "--rounds", "1", "--turns", "1"]
    file = tmp_path / "against.json"
    done = subprocess.run(
        [*command, *sizes, "--output", str(file)], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0, done.stderr
    [row] = json.loads(file.read_text())["rows"]
    assert row["here_over_other"] > 0
    assert len(row["here_over_other_by_turn"]) == 1
