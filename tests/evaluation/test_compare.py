"""Two runs held against each other: figures and differences that can be checked by hand, and refusals in words."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console

from ensemw2s.errors import ConfigError
from ensemw2s.evaluation.compare import RunsCompared, compare, print_comparison, read

N = 60


def run(
    folder: Path,
    right: dict[str, int],
    *,
    n: int = N,
    prompts: bool = True,
    data: dict[str, Any] | None = None,
    votes: tuple[float, ...] = (),
) -> Path:
    """A run's folder: each voter answers the first examples right, as many as it says, and the others with `no`."""
    (folder / "evaluation").mkdir(parents=True)
    rows = [
        {"split": split, "voter": voter, "id": f"{split}{i:03}", "truth": str(i)}
        | {"answer": str(i) if i < most else "no"}
        | ({"prompt": f"say {i}"} if prompts else {})
        for split in ("id", "ood")
        for voter, most in right.items()
        for i in reversed(range(n))
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "evaluation/answers.parquet")
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": data or {}}))
    expert = {"base": "a", "alpha": 1.0, "weighted_error": 0.1, "error": 0.1, "train_loss": 1.0, "seconds": 1.0}
    spread = dict.fromkeys(("min", "p50", "p90", "p99", "max", "effective_fraction"), 1.0)
    rounds = [
        {"round": t, "alpha": 1.0, "weighted_error": 0.1, "reference_error": None, "accepted": True, "reset": False}
        | {"experts": [{"name": f"e{t}", "weight": weight, "tokens_trained": 1} | expert], "weights": spread}
        | {"started": 0.0, "finished": 1.0}
        for t, weight in enumerate(votes)
    ]
    systems = {voter: {} for voter in right if ":" not in voter} | ({"sequence_vote": {}} if votes else {})
    systems |= {"base_zero_shot": {}} if any(voter.startswith("base:") for voter in right) else {}
    (folder / "results.json").write_text(json.dumps({"seed": 0, "systems": systems, "rounds": rounds}))
    return folder


def compared(tmp_path: Path, first: dict[str, int], second: dict[str, int], **rest: Any) -> RunsCompared:
    return compare(read(run(tmp_path / "a", first, **rest)), read(run(tmp_path / "b", second, **rest)))


def printed(found: RunsCompared, system: str) -> str:
    text = io.StringIO()
    print_comparison(found, Console(file=text, width=100, color_system=None), system=system, shown=2)
    return text.getvalue()


def test_a_difference_is_that_of_the_second_run_from_the_first_over_the_same_examples(tmp_path: Path) -> None:
    found = compared(tmp_path, {"ensemw2s": 30, "bagging": 12}, {"ensemw2s": 45, "bagging": 12})
    ours = {row.split: row for row in found.systems if row.system == "ensemw2s"}["ood"]
    assert (ours.exact_match, ours.difference, ours.n) == ((0.5, 0.75), 0.25, N)
    assert (ours.only_first, ours.only_second, ours.verdict) == (0, 15, "better")
    assert 0.1 < ours.difference_ci95[0] < 0.25 < ours.difference_ci95[1] < 0.4
    other = next(row for row in found.systems if row.system == "bagging")
    assert (other.difference, other.difference_ci95, other.verdict) == (0, (0, 0), "no difference")


def test_the_examples_are_those_that_one_run_alone_answers(tmp_path: Path) -> None:
    found = compared(tmp_path, {"ensemw2s": 30}, {"ensemw2s": 28})
    apart = [(one.split, one.id, one.prompt, one.truth, one.answers, one.right) for one in found.examples]
    assert apart == [
        (split, f"{split}{i:03}", f"say {i}", str(i), (str(i), "no"), "first")
        for split in ("id", "ood")
        for i in (28, 29)
    ]


def test_what_is_printed_has_a_table_of_each_split_and_some_of_the_examples(tmp_path: Path) -> None:
    text = printed(
        compared(tmp_path, {"ensemw2s": 30, "bagging": 9}, {"ensemw2s": 45, "student_single": 9}), "ensemw2s"
    )
    assert "ID: exact match in %, n = 60" in text
    assert "EnsemW2S ensemble   50.0    75.0  +25.0 (+15.0 to +36.7)           0           15" in text
    assert "Of 1 systems, the second run’s is better in 1 (EnsemW2S ensemble), worse in 0" in text
    assert "Only in the first run: Bagging" in text
    assert "Only in the second run: Student of one expert" in text
    assert "OOD: 2 of 15 examples that one run alone answers" in text
    assert "say 30" in text
    assert "say 32" not in text


def test_a_vote_of_whole_answers_and_a_mean_over_bases_are_compared_like_the_systems_they_are(tmp_path: Path) -> None:
    first = {"expert:e0": 30, "expert:e1": 60, "base:x": 30, "base:y": 0}
    second = {"expert:e0": 30, "expert:e1": 0, "base:x": 30, "base:y": 30}
    found = compared(tmp_path, first, second, votes=(2.0, 1.0))
    by_name = {row.system: row for row in found.systems if row.split == "id"}
    assert by_name["sequence_vote"].exact_match == (0.5, 0.5), "the heavier expert decides"
    assert by_name["base_zero_shot"].exact_match == (0.25, 0.5)
    assert {one.system for one in found.examples} == set(), "a mean over bases has no answer to show"


def test_runs_of_before_have_no_prompts_and_show_ids(tmp_path: Path) -> None:
    found = compared(tmp_path, {"ensemw2s": 30}, {"ensemw2s": 28}, prompts=False)
    assert found.examples[0].prompt is None
    assert "id028" in printed(found, "ensemw2s")


def test_runs_with_other_test_examples_are_refused_in_words(tmp_path: Path) -> None:
    first, second = run(tmp_path / "a", {"ensemw2s": 9}), run(tmp_path / "b", {"ensemw2s": 9}, n=N - 20)
    with pytest.raises(ConfigError, match=r"have different ID test examples \(60 and 40, of which 40 are the same\)"):
        compare(read(first), read(second))


def test_runs_that_count_other_answers_as_right_are_refused(tmp_path: Path) -> None:
    first = run(tmp_path / "a", {"ensemw2s": 9})
    second = run(tmp_path / "b", {"ensemw2s": 9}, data={"answer_match": "numeric"})
    with pytest.raises(ConfigError, match=r"data\.answer_match.*'exact' and 'numeric'"):
        compare(read(first), read(second))


def test_runs_without_a_common_system_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no system in common: bagging against ensemw2s"):
        compared(tmp_path, {"bagging": 9}, {"ensemw2s": 9})


def test_a_folder_without_answers_says_that_the_whole_run_is_needed(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", {"ensemw2s": 9})
    (folder / "evaluation/answers.parquet").unlink()
    with pytest.raises(ConfigError, match="a comparison needs the whole folder of a run"):
        read(folder)
