"""The job of a study is its command: here what it says before any Ray is there."""

import runpy
import sys
from pathlib import Path

import pytest
import yaml

from ..config.test_study import RUN

ROOT = Path(__file__).parents[2]


@pytest.fixture
def submit(tmp_path, monkeypatch, capfd):
    """Runs the job with these arguments; gives its exit code, output and errors."""
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump({"name": "two-seeds", "storage": "runs", "base": RUN, "seeds": [3, 5]}))

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["jobs/study.py", str(study), *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "jobs" / "study.py"), run_name="__main__")
        shown = capfd.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    return run


def test_the_job_takes_the_options_of_the_command(submit, tmp_path) -> None:
    code, shown, _ = submit("--plan", "--set", f"storage={tmp_path}")
    assert code == 0
    assert "0 of 2 cells are done" in shown


def test_the_job_refuses_to_write_where_it_will_be_deleted(submit, monkeypatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    code, _, said = submit("--plan")
    assert code == 2
    assert "storage runs is relative" in said
