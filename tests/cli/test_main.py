"""What a person meets at the command line: help, exit codes, one-line reasons, plans, reports and model lists."""

import collections
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from ensemw2s import __version__
from ensemw2s.cli.main import app
from ensemw2s.errors import DataError, TrainingError

ROOT = Path(__file__).parents[2]
COMMANDS = (
    *("init", "run", "plan", "pilot", "tune", "study", "report", "compare", "clean"),
    *("label", "evaluate", "models", "serve", "ask", "chat"),
)


def call(*arguments: str | Path) -> Result:
    environment = {"COLUMNS": "160", "NO_COLOR": "1", "RAY_ADDRESS": None, "TERM": "dumb"}
    return CliRunner().invoke(app, [str(a) for a in arguments], env=environment)


def words(text: str) -> str:
    return " ".join(text.replace("│", " ").split())


def study(tmp_path: Path, **sections: Any) -> Path:
    """A small valid config on a jsonl file, with whole sections replaced."""
    rows = [{"prompt": f"{a} and {b}", "answer": str(a), "level": b % 2} for a in range(6) for b in range(6)]
    write_rows(tmp_path / "own.jsonl", rows)
    tree: dict[str, Any] = {
        "name": "study",
        "storage": str(tmp_path / "runs"),
        "data": {
            "source": {"kind": "files", "paths": [str(tmp_path / "own.jsonl")], "columns": {"difficulty": "level"}},
            "split": {"difficulty_from": "column"},
            "sizes": {"easy_train": 8, "easy_validation": 4, "id_test": 4, "hard_unlabelled": 8, "ood_test": 4},
        },
        "models": {"weak": [{"base": "tiny-weak"}], "strong": {"base": "tiny-strong"}},
        "cluster": {"cpus": 2, "gpus": 0},
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(tree | sections), encoding="utf-8")
    return path


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def figures(value: float) -> dict[str, Any]:
    return {"exact_match": value, "token_accuracy": 0.9, "nll": 0.3, "n": 100, "ci95": [value - 0.1, value + 0.1]}


RESULTS = {
    "name": "study",
    "seed": 0,
    "config_fingerprint": "00",
    "systems": {
        "expert_single": {"id": figures(0.6), "ood": figures(0.2)},
        "ensemw2s": {"id": figures(0.8), "ood": figures(0.4)},
    },
    "pgr": {},
    "rounds": [],
    "comparisons": [{"a": "ensemw2s", "b": "expert_single", "split": "ood", "difference": 0.2, "ci95": [0.1, 0.3]}],
    "stages": [{"name": "data", "seconds": 1.5, "status": "ran"}],
    "total_seconds": 2.0,
}


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)], ids=lambda c: c[0] if c else "ensemw2s")
def test_help_says_what_is_read_what_is_left_and_gives_an_example(command: tuple[str, ...]) -> None:
    result = call(*command, "--help")
    assert result.exit_code == 0
    text = words(result.stdout)
    assert f"ensemw2s {command[0] if command else 'run'} " in text.split("Usage:")[1].split(" ", 1)[1], "no example"
    assert len(text) > 500
    if not command:
        assert "Exit codes: 0 done; 1 the work failed" in text
        assert all(f"{name} " in text for name in COMMANDS)


def test_help_needs_none_of_the_heavy_packages() -> None:
    heavy = ("ray", "torch", "transformers", "datasets", "deepspeed", "peft", "pyarrow", "numpy", "matplotlib")
    code = f"""
    import sys
    from ensemw2s.cli.main import app
    for command in {[[], *([c] for c in COMMANDS)]!r}:
        try:
            app([*command, "--help"])
        except SystemExit as end:
            assert end.code == 0
    loaded = [name for name in {heavy!r} if name in sys.modules]
    assert not loaded, loaded
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_version_is_printed() -> None:
    assert call("--version").stdout == f"ensemw2s {__version__}\n"


@pytest.mark.parametrize("arguments", [(), ("frobnicate",), ("run",), ("run", "--frequent"), ("label", "--input", "x")])
def test_bad_usage_exits_2(arguments: tuple[str, ...]) -> None:
    assert call(*arguments).exit_code == 2


def test_a_config_with_unknown_keys_and_bad_values_exits_2_with_all_of_them(tmp_path: Path) -> None:
    path = study(tmp_path, boosting={"ruonds": 3, "shrinkage": 7})
    result = call("run", path)
    assert result.exit_code == 2
    assert "has 2 mistakes" in result.stderr
    assert "boosting.ruonds: unknown key; did you mean rounds?" in result.stderr
    assert "boosting.shrinkage: " in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs").exists()


def test_a_missing_column_exits_2_before_anything_starts(tmp_path: Path) -> None:
    result = call("run", study(tmp_path), "--set", "data.source.columns.prompt=question")
    assert result.exit_code == 2
    assert "has no column 'question'" in result.stderr
    assert "columns present: prompt, answer, level" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_work_that_never_fits_exits_2_before_anything_starts(tmp_path: Path) -> None:
    for command in ("run", "plan"):
        result = call(command, study(tmp_path), "--set", "training.workers=64")
        assert result.exit_code == 2
        assert "training.workers asks for 64 workers" in result.stderr
        assert "only 2 fit on 1 node, 2 CPUs, 0 GPUs" in result.stderr
        assert not (tmp_path / "runs").exists()


def test_a_model_that_is_not_there_exits_2(tmp_path: Path) -> None:
    result = call("run", study(tmp_path), "--set", "models.weak.0.base=./no/such/model")
    assert result.exit_code == 2
    assert "there is no such folder" in result.stderr


def test_a_config_that_is_not_there_exits_2() -> None:
    result = call("run", "nothing.yaml")
    assert result.exit_code == 2
    assert result.stderr == "error: config nothing.yaml cannot be read: No such file or directory\n"


@pytest.fixture
def run_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the command with a pipeline that ends in this exception."""

    def run(error: BaseException, *arguments: str) -> Result:
        def failing(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr("ensemw2s.pipeline.run.run", failing)
        return call("run", study(tmp_path), *arguments)

    return run


def test_work_that_fails_exits_1_with_the_reason_in_one_line(run_raises) -> None:
    result = run_raises(TrainingError("rounds/2/experts/0: the loss is nan\nin epoch 3"))
    assert result.exit_code == 1
    assert result.stderr == "error: rounds/2/experts/0: the loss is nan in epoch 3\n"
    assert run_raises(DataError("found later")).exit_code == 1, "only checks before the work make a config a bad one"


def test_a_mistake_of_ours_is_one_line_and_a_trace_only_when_asked(run_raises) -> None:
    result = run_raises(KeyError("weights"))
    assert result.exit_code == 1
    assert result.stderr == "internal error: KeyError: 'weights'; run with --debug for the trace\n"
    result = run_raises(KeyError("weights"), "--debug")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("internal error: KeyError: 'weights'\n")


def test_a_full_disk_is_no_mistake_of_ours(run_raises) -> None:
    result = run_raises(OSError(28, "No space left on device", "runs/study/config.yaml"))
    assert result.exit_code == 1
    words = "No space left on device; free some, then give the same command again"
    assert result.stderr == f"error: runs/study/config.yaml: {words}\n"


def test_ctrl_c_exits_130_and_says_how_to_go_on(run_raises) -> None:
    result = run_raises(KeyboardInterrupt())
    assert result.exit_code == 130
    assert result.stderr == "stopped: the same command continues from what is finished\n"


def test_a_plan_starts_no_ray_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = study(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it fails from here on
    result = call("plan", path, "--set", "boosting.rounds=2")
    assert result.exit_code == 0, result.stderr
    assert "rounds/1 … 2" in result.stdout
    assert "this machine: 1 node, 2 CPUs, 0 GPUs" in result.stdout
    assert "all 36 rows can be used" in result.stdout
    assert "Nothing is done yet" in result.stdout
    assert sorted(tmp_path.rglob("*")) == before


def test_plan_and_run_refuse_a_bad_row_with_the_same_words_and_code_2(tmp_path: Path) -> None:
    path = study(tmp_path)
    file = tmp_path / "own.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()
    lines[20] = json.dumps(json.loads(lines[20]) | {"level": None})
    file.write_text("\n".join(lines), encoding="utf-8")
    planned, ran = call("plan", path), call("run", path)
    assert (planned.exit_code, ran.exit_code) == (2, 2)
    assert "own.jsonl row 21: the difficulty" in planned.stderr
    assert planned.stderr == ran.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "ensemw2s" / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_every_config_that_comes_along_is_valid(path: Path) -> None:
    from ensemw2s.config import load_config

    assert load_config(path).name == path.stem


def test_init_lists_the_recipes_or_writes_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    listed = call("init").stdout
    assert "  quickstart      " in listed
    assert "  ablation        " in listed
    result = call("init", "mine", "--recipe", "tiny")
    assert result.stdout == "wrote mine.yaml, from the recipe tiny. Edit it; then: ensemw2s plan mine.yaml\n"
    assert call("init", "my-data").stdout.startswith("wrote my-data.yaml, from the recipe my-data.")
    assert call("init", "other", "--output", "o.yaml").stdout.startswith("wrote o.yaml, from the recipe quickstart.")
    again = call("init", "mine")
    assert again.exit_code == 2
    assert again.stderr.startswith("error: mine.yaml is there already")


@pytest.mark.slow
def test_a_recipe_is_planned_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("plan", "quickstart", "--set", "boosting.rounds=2")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("quickstart, seed 0, in runs/quickstart")
    assert "Time       about" in result.stdout
    assert "Memory     at most about" in result.stdout
    assert "Disk       at most about" in result.stdout
    result = call("study", "tiny", "--plan", "--set", "seeds=[0]")
    assert result.exit_code == 0, result.stderr
    assert "Time  about" in result.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_plans_are_printed_for_programs_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = json.loads(call("plan", "quickstart", "--set", "boosting.rounds=2", "--json").stdout)
    assert (plan["name"], plan["folder"], plan["complete"]) == ("quickstart", "runs/quickstart", False)
    stages = {stage["name"]: stage for line in plan["lines"] for stage in line["stages"]}
    assert stages["rounds/2"]["state"] == stages["evaluation"]["state"] == "to do"
    assert sum(stage["steps"] or 0 for stage in stages.values()) == plan["steps_left"] > 0
    assert plan["rows"] == {"rows": 200, "whole": False}, "of each part that is generated, a hundred"
    assert {stage["name"] for stage in plan["here"]["stages"]} >= {"models", "rounds", "students", "evaluation"}
    assert plan["here"]["seconds"] > 6
    assert plan["here"]["memory_gib"] > 1
    assert 0 < plan["disk"]["passes"] < plan["disk"]["models"], "two passes of the quickstart's members"
    study = json.loads(call("study", "tiny", "--plan", "--json", "--set", "seeds=[0]").stdout)
    assert study["cells"][0]["seed"] == 0
    assert not any(cell["complete"] for cell in study["cells"])
    assert study["here"]["seconds"] > plan["here"]["seconds"], "six tasks"
    assert 0 < study["models_left"] < study["stages_left"] == study["stages"]
    assert call("study", "tiny", "--json").stderr == "error: --json: give --plan, too\n"


def test_runs_are_compared_and_a_system_that_one_lacks_is_named(tmp_path: Path) -> None:
    from ..evaluation.test_compare import run

    first, second = run(tmp_path / "a", {"ensemw2s": 30}), run(tmp_path / "b", {"ensemw2s": 45, "bagging": 1})
    assert "+25.0 (" in call("compare", first, second).stdout
    found = json.loads(call("compare", first, second, "--json").stdout)
    assert [row["difference"] for row in found["systems"]] == [0.25, 0.25]
    assert len(found["examples"]) == 30
    refused = call("compare", first, second, "--system", "bagging")
    assert (refused.exit_code, refused.stderr) == (2, "error: --system bagging: both runs have ensemw2s\n")


@pytest.mark.parametrize(("shell", "word"), [("bash", "complete -"), ("zsh", "#compdef"), ("fish", "complete ")])
def test_a_shell_gets_a_script_that_completes(shell: str, word: str) -> None:
    result = CliRunner().invoke(app, prog_name="ensemw2s", env={"_ENSEMW2S_COMPLETE": f"source_{shell}"})
    assert result.exit_code == 0, result.stderr
    assert word in result.stdout
    assert "_ENSEMW2S_COMPLETE" in result.stdout


def test_what_the_script_asks_is_answered_with_commands_and_options() -> None:
    def completed(words: str) -> list[str]:
        asked = {"_ENSEMW2S_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        return CliRunner().invoke(app, prog_name="ensemw2s", env=asked).stdout.split()

    assert completed("ensemw2s comp") == ["compare"]
    assert "--system" in completed("ensemw2s compare --s")


@pytest.mark.slow
def test_the_readme_makes_a_file_that_its_config_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ensemw2s.config import load_config
    from ensemw2s.data.splits import make_splits

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = next(text for text in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "my-data.jsonl" in text)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    result = call("plan", ROOT / "ensemw2s" / "recipes" / "my-data.yaml")
    assert result.exit_code == 0, result.stderr
    splits = make_splits(load_config(ROOT / "ensemw2s" / "recipes" / "my-data.yaml").data, seed=0)
    assert max(splits.easy_train["difficulty"].to_pylist()) < min(splits.ood_test["difficulty"].to_pylist())
    in_readme = yaml.safe_load(next(t for t in re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL) if "my-data" in t))
    in_file = yaml.safe_load((ROOT / "ensemw2s" / "recipes" / "my-data.yaml").read_text(encoding="utf-8"))
    assert in_readme["data"] == in_file["data"]
    page = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8")
    assert block in page, "the page makes the same file"
    assert len(in_file["models"]["weak"]) == in_file["boosting"]["rounds"] > 1
    levels = collections.Counter(splits.easy_train["difficulty"].to_pylist())
    assert set(levels) == {3, 4}, "easy lists of two lengths: boosting has something to tell apart"


def test_a_report_is_made_from_results_alone(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    result = call("report", tmp_path)
    assert result.exit_code == 0, result.stderr
    assert "EnsemW2S ensemble 80.0 (70.0–90.0) 40.0 (30.0–50.0)" in words(result.stdout)
    assert words(result.stdout).endswith(f"report: {tmp_path / 'report.html'}")
    assert "<html" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert (tmp_path / "plots" / "systems.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_of_no_run_or_of_damaged_results_says_so(tmp_path: Path) -> None:
    result = call("report", tmp_path)
    assert (result.exit_code, result.stderr[:6]) == (2, "error:")
    assert "has no results.json; a run writes it at its end" in result.stderr
    (tmp_path / "results.json").write_text("{")
    result = call("report", tmp_path)
    assert result.exit_code == 1
    assert "cannot be read" in result.stderr
    (tmp_path / "results.json").write_text("[]")
    assert "it has no systems" in call("report", tmp_path).stderr


@pytest.mark.slow
def test_a_closed_pipe_ends_quietly(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as nobody_reads:
        done = subprocess.run(
            [sys.executable, "-c", "from ensemw2s.cli.main import main; main()", "report", str(tmp_path)],
            stdout=nobody_reads,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (141, "")
