"""Commands on models that left their run: listing them, labelling and evaluating with them, and what they refuse."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from ensemw2s.cli.main import app
from ensemw2s.storage import remote


def call(*arguments: str | Path) -> Result:
    environment = {"COLUMNS": "160", "NO_COLOR": "1", "RAY_ADDRESS": None, "TERM": "dumb"}
    return CliRunner().invoke(app, [str(a) for a in arguments], env=environment)


def words(text: str) -> str:
    return " ".join(text.split())


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_embedded_family_is_listed() -> None:
    text = words(call("models").stdout)
    assert "tiny-weak LlamaForCausalLM 2 32 4 512 30 k" in text
    assert "tiny-strong LlamaForCausalLM 3 64 4 512 159 k" in text
    rows = {row["name"]: row for row in json.loads(call("models", "--json").stdout)}
    assert (rows["tiny-weak"]["layers"], rows["tiny-strong"]["context"]) == (2, 512)
    assert 29_000 < rows["tiny-weak"]["parameters"] < 31_000


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two random experts (a, b), their ensemble, and adapters on one of them."""
    from ensemw2s.config import Lora
    from ensemw2s.ensemble.artifact import MemberSource, save_ensemble
    from ensemw2s.models import loading, tiny

    root = tmp_path_factory.mktemp("saved")
    tokenizer = tiny.train_tokenizer(["sort 0 1 2 3 4 5 6 7 8 9"] * 5, 40)
    for seed, name in enumerate(("a", "b")):
        loading.save_trained(tiny.create_tiny("tiny-weak", tokenizer, seed), tokenizer, root / name)
    members = [MemberSource(f"m{i}", root / name, 1.0 + i, 1.0 + i, i + 1) for i, name in enumerate(("a", "b"))]
    save_ensemble(root / "ensemble", members=members, rule="probability", tokenizer=tokenizer)
    adapted = loading.attach_lora(loading.load_causal_lm(root / "a"), Lora(rank=2), seed=0)
    base = loading.BaseReference(path=str(root / "a"), revision=None)
    loading.save_trained(adapted, tokenizer, root / "lora", base=base)
    return root


@pytest.mark.slow
def test_facts_of_models_adapters_and_ensembles_are_listed(saved: Path) -> None:
    result = call("models", saved / "a", saved / "lora", saved / "ensemble")
    assert result.exit_code == 0, result.stderr
    text = words(result.stdout)
    assert text.count("architecture LlamaForCausalLM") == 4
    assert "LoRA of rank 2" in text
    assert "model, round 1, 33.3% of the vote" in text
    assert "model, round 2, 66.7% of the vote" in text
    hashes = {line.split()[1] for line in result.stdout.splitlines() if line.startswith("  tokenizer")}
    assert len(hashes) == 1
    assert len(hash := hashes.pop()) == 64
    rows = json.loads(call("models", saved / "a", saved / "ensemble", "--json").stdout)
    assert [row["kind"].split(",")[0] for row in rows] == ["model"] * 3
    assert {row["tokenizer"] for row in rows} == {hash}
    assert all(row["parameters"] > 1000 and row["context"] == 512 for row in rows)


@pytest.mark.slow
def test_models_and_ensembles_in_object_storage_are_listed(saved: Path, bucket: Any) -> None:
    for name in ("a", "ensemble"):
        remote.push(saved / name, remote.local(f"s3://{bucket.name}/{name}"))
    result = call("models", *(f"s3://{bucket.name}/{name}" for name in ("a", "ensemble")))
    assert result.exit_code == 0, result.stderr
    assert "model, round 2, 66.7% of the vote" in words(result.stdout)
    result = call("models", f"s3://{bucket.name}/nothing")
    assert result.exit_code == 2
    assert f"s3://{bucket.name}/nothing: there is no such folder" in words(result.stderr)


def test_a_report_is_written_again_where_its_results_are(bucket: Any) -> None:
    results = {"name": "study", "systems": {}}
    bucket.client.put_object(Bucket=bucket.name, Key="runs/study/results.json", Body=json.dumps(results).encode())
    result = call("report", f"s3://{bucket.name}/runs/study")
    assert result.exit_code == 0, result.stderr
    assert f"report: s3://{bucket.name}/runs/study/report.html" in words(result.stdout)
    assert "runs/study/report.html" in bucket.objects()
    result = call("report", f"s3://{bucket.name}/runs/other")
    assert result.exit_code == 2
    assert f"s3://{bucket.name}/runs/other has no results.json" in words(result.stderr)


def test_a_model_that_cannot_be_listed_exits_2(tmp_path: Path) -> None:
    result = call("models", tmp_path)
    assert result.exit_code == 2
    assert "config.json is missing" in result.stderr


@pytest.mark.slow
def test_labels_never_go_into_a_folder_that_holds_something_else(saved: Path, tmp_path: Path) -> None:
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "sort 1 2"}])
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "thesis.txt").write_text("years of work")
    for more in ((), ("--fresh",)):
        result = call("label", "--ensemble", saved / "ensemble", "--input", prompts, "--output", kept, *more)
        assert result.exit_code == 2
        assert "holds something else" in result.stderr
        assert (kept / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("rows", "options", "reason"),
    [
        ([{"question": "x"}], (), "has no column 'prompt'"),
        (
            [{"prompt": "x", "key": "1"}, {"prompt": "y", "key": "1"}],
            ("--id-column", "key", "--max-rejected", "0"),
            "1 rows cannot be labelled, labeling.max_rejected (--max-rejected) allows 0",
        ),
        ([{"prompt": "x"}], ("--prompt-template", "no place"), "--prompt-template: must contain {prompt}"),
        ([{"prompt": "x"}], ("--cpus", "1", "--cpus-per-actor", "2"), "0 actors of 2 CPUs and 0 GPUs fit on 1 node"),
        ([], (), "there are no rows"),
        ([{"prompt": "x"}], ("--samples", "4"), "which are all the same at temperature 0"),
        ([{"prompt": "x"}], ("--min-consistency", "0.5"), "--min-consistency compares several samples"),
        ([{"prompt": "x"}], ("--dataset", "org/name"), "give one input: --input PATH, or --dataset NAME"),
    ],
    ids=["column", "ids", "template", "resources", "empty", "samples", "consistency", "two inputs"],
)
def test_what_is_wrong_with_prompts_or_options_is_said_before_ray_starts(
    saved: Path, tmp_path: Path, rows: list[dict[str, Any]], options: tuple[str, ...], reason: str
) -> None:
    prompts = write_rows(tmp_path / "prompts.jsonl", rows)
    output = tmp_path / "labels"
    result = call("label", "--ensemble", saved / "ensemble", "--input", prompts, "--output", output, *options)
    assert result.exit_code == 2, result.output
    assert reason in result.stderr
    assert not list(tmp_path.glob("labels/part-*"))


def test_a_run_is_not_its_ensemble(saved: Path, tmp_path: Path) -> None:
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "sort 1 2"}])
    result = call("label", "--ensemble", saved, "--input", prompts, "--output", tmp_path / "labels")
    assert result.exit_code == 2
    assert f"its ensemble is {saved / 'ensemble'}" in result.stderr


def test_a_damaged_ensemble_exits_1(tmp_path: Path) -> None:
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "sort 1 2"}])
    (tmp_path / "ensemble.json").write_text("{")
    result = call("label", "--ensemble", tmp_path, "--input", prompts, "--output", tmp_path / "labels")
    assert result.exit_code == 1
    assert "ensemble.json cannot be read" in result.stderr


def test_settings_come_from_the_run_that_a_model_lies_in_and_options_win(tmp_path: Path) -> None:
    from ensemw2s.config import FilesSource
    from ensemw2s.labeling.inputs import settings_for

    run = tmp_path / "study"
    (run / "students" / "x").mkdir(parents=True)
    tree = {
        "data": {"prompt_template": "Q: {prompt}", "answer_prefix": "\n", "key_of_an_older_release": 1},
        "labeling": {"max_new_tokens": 9, "soft_top_k": 4, "min_actors": 3},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(tree))
    (run / "manifest.json").write_text("{}")
    source = FilesSource(paths=["rows.jsonl"])
    found = settings_for(str(run / "students" / "x"), source, {"max_actors": 2, "batch_size": None})
    assert (found.run, found.source) == (run.resolve(), source)
    assert (found.data.prompt_template, found.data.answer_prefix) == ("Q: {prompt}", "\n")
    assert (found.labeling.max_new_tokens, found.labeling.soft_top_k) == (9, 0)
    assert (found.labeling.min_actors, found.labeling.max_actors) == (1, 2)
    alone = settings_for("org/model", source, {"max_new_tokens": 5, "prompt_template": "{prompt}!"})
    assert (alone.run, alone.labeling.max_new_tokens, alone.data.prompt_template) == (None, 5, "{prompt}!")


def test_option_accuracy_is_of_the_examples_that_have_options() -> None:
    from ensemw2s.evaluation.saved import figures

    rows = {
        "answer": ["a ", "b"],
        "forced": [True, False],
        "token_correct": [2, 1],
        "n_tokens": [2, 2],
        "nll": [0.1, 0.7],
        "option": ["b", None],
    }
    found = figures(rows, ["a", "c"], [["a", "b"], None], seed=0)
    assert (found.exact_match, found.option_accuracy, found.n) == (0.5, 0.0, 2)
    assert (found.token_accuracy, found.nll) == (0.75, pytest.approx(0.2))
    assert figures(rows, ["a", "c"], [None, None], seed=0).option_accuracy is None


def test_figures_that_have_nowhere_to_go_are_refused_before_the_work(saved: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [{"prompt": "sort 1", "answer": "1"}])
    result = call("evaluate", "--model", saved / "a", "--input", data, "--json", tmp_path / "no" / "x.json")
    assert result.exit_code == 2
    assert "there is no folder" in result.stderr
    (tmp_path / "empty").mkdir()
    result = call("evaluate", "--model", tmp_path / "empty", "--input", data)
    assert result.exit_code == 2
    assert "holds no tokenizer" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--where", "split =="], "error: --where 'split ==' is not valid Jinja"),
        (["--prompt-column", "{{ x"], "error: --prompt-column: template '{{ x' is not valid Jinja"),
        (["--id-column", "key"], "has no column 'key' (--id-column)"),
        (["--answer-match", "("], "error: --answer-match: "),
        (["--samples", "3", "--temperature", "0"], "error: --samples, --temperature: samples is 3"),
        (["--input", "none*.jsonl"], "error: --input none*.jsonl: no file has such a name"),
    ],
)
def test_errors_name_the_option(saved: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [{"prompt": "sort 1", "answer": "1"}])
    result = call("label", "--ensemble", saved / "ensemble", "--output", tmp_path / "o", "--input", data, *arguments)
    assert result.exit_code == 2
    assert said in words(result.stderr)


def test_files_are_named_by_a_pattern(saved: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_rows(tmp_path / f"{name}.jsonl", [{"prompt": f"sort {name}", "answer": "1"}])
    given = ["--input", tmp_path / "*.jsonl", "--where", "prompt == 'x'"]
    result = call("label", "--ensemble", saved / "ensemble", "--output", tmp_path / "o", *given)
    assert "no file has such a name" not in result.stderr
    assert result.exit_code == 2


def test_a_whole_run_in_place_of_a_model_gets_the_same_hint_everywhere(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "ensemble", tmp_path / "run/ensemble")
    data = write_rows(tmp_path / "rows.jsonl", [{"prompt": "sort 1", "answer": "1"}])
    for arguments in (
        ["label", "--ensemble", tmp_path / "run", "--input", data, "--output", tmp_path / "o"],
        ["evaluate", "--model", tmp_path / "run", "--input", data],
        ["models", tmp_path / "run"],
        ["serve", "--ensemble", tmp_path / "run"],
    ):
        result = call(*arguments)
        assert result.exit_code == 2
        assert f"{tmp_path / 'run'} is a run; its ensemble is {tmp_path / 'run/ensemble'}" in words(result.stderr)


def test_a_job_that_evaluates_says_where_its_nodes_find_the_input(saved: Path, tmp_path: Path, monkeypatch) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [{"prompt": "sort 1", "answer": "1"}])
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    result = call("evaluate", "--model", saved / "a", "--input", data)
    assert result.exit_code == 2
    assert "a Ray job needs --json" in words(result.stderr)


@pytest.mark.parametrize("place", ["bucket", "folder"])
def test_the_input_of_an_evaluation_lies_beside_its_figures_and_goes(bucket, tmp_path: Path, place: str) -> None:
    from ensemw2s.config import ClusterConfig
    from ensemw2s.evaluation.saved import EvaluateWork, scratch_folder

    shared = remote.local(f"s3://{bucket.name}/figures") if place == "bucket" else tmp_path / "figures"
    with scratch_folder(EvaluateWork("a", None, ClusterConfig(address="10.0.0.1:6379"), shared)) as folder:
        assert folder.parent == shared
        (folder / "examples.parquet").write_bytes(b"rows")
        remote.push(folder / "examples.parquet")
        assert remote.exists(folder / "examples.parquet")
        assert len(bucket.objects()) == (place == "bucket")
    assert bucket.objects() == {}
    assert not folder.exists()


@pytest.mark.ray
def test_a_saved_ensemble_labels_and_is_evaluated(saved: Path, workplace) -> None:
    import pyarrow.parquet as pq

    rows = [{"question": f"sort {i % 9} {i // 9}", "reply": str(i % 9)} for i in range(30)]
    rows += rows[:1]
    data = write_rows(workplace.folder / "rows.jsonl", rows)
    small = ("--cpus", "2", "--cpus-per-actor", "1", "--batch-size", "16", "--max-new-tokens", "4")
    columns = ("--prompt-column", "question")
    output = workplace.folder / "labels"
    label = ("label", "--ensemble", saved / "ensemble", "--input", data, "--output", output, *columns, *small)
    first = workplace.done(*label)
    assert "defaults (the model lies in no run's folder)" in first.text
    assert "31 labels in" in first.text
    table = pq.read_table(sorted(output.glob("part-*.parquet")))
    assert table["prompt"].to_pylist() == [row["question"] for row in rows], "every row has its label, in order"
    assert len(set(table["id"].to_pylist())) == 31
    assert not (output / ".prompts").exists()
    assert json.loads((output / "summary.json").read_text())["labels"] == 31
    assert "nothing to do" in call(*label).stdout
    filtered = call(*label, "--min-agreement", "0.5", "--keep-fraction", "0.5")
    passed = pq.read_table(sorted(output.glob("kept/*.parquet")))
    assert f"{len(passed)} labels kept in" in filtered.stdout
    assert set(passed["id"].to_pylist()) < set(table["id"].to_pylist())
    call(*label)
    assert not (output / "kept").exists(), "without a filter all are kept, and no others lie there"
    other = call(*label[:-1], "5")
    assert other.exit_code == 1
    assert "max_new_tokens was 4, is 5" in other.stderr

    found = workplace.folder / "figures.json"
    evaluate = ("evaluate", "--model", saved / "ensemble", "--input", data, *columns, "--answer-column", "reply")
    second = workplace.done(*evaluate, "--json", found, *small)
    assert "Exact match" in second.text
    metrics = json.loads(found.read_text())["metrics"]
    answers = table["answer"].to_pylist()
    assert metrics["n"] == 31
    assert metrics["exact_match"] == sum(a == row["reply"] for a, row in zip(answers, rows, strict=True)) / 31
    assert 0 <= metrics["token_accuracy"] <= 1
    assert metrics["nll"] > 0
