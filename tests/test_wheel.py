"""The package as people install it: a wheel that works with no checkout near it."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ensemw2s import __version__
from ensemw2s.config import recipes

ROOT = Path(__file__).parent.parent

# As little as gives answers that end, so that a student has labels to learn from.
SMALL = (
    "data.sizes={easy_train: 200, easy_validation: 40, id_test: 40, hard_unlabelled: 60, ood_test: 40}",
    "models.weak=[{base: tiny-weak}]",
    "models.pretraining.corpus.weak_documents=4000",
    "models.pretraining.corpus.strong_documents=1000",
    "boosting.rounds=1",
    "boosting.prior=samme",
    "expert={epochs: 8, learning_rate: 0.005, batch_size: 16}",
    "student.epochs=1",
    "evaluation.systems=[ensemw2s, student_ensemw2s]",
    "evaluation.bootstrap_samples=100",
    "cluster.cpus=2",
)


def pip(*arguments: str | Path, python: str | Path = sys.executable) -> None:
    done = subprocess.run(
        [python, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of what it is made of, so that nothing is left in the checkout."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "ensemw2s", source / "ensemw2s", ignore=shutil.ignore_patterns("__pycache__"))
    pip("wheel", source, "--no-deps", "--no-build-isolation", "--no-cache-dir", "--wheel-dir", source / "dist")
    [built] = (source / "dist").iterdir()
    return built


def outside(**changes: str) -> dict[str, str]:
    """The environment of somebody who has no checkout."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "PYTEST_", "PYTHONPATH"))}
    return kept | {"COLUMNS": "160", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1", **changes}


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    assert wheel.name == f"ensemw2s-{__version__}-py3-none-any.whl"
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = ROOT / "ensemw2s"
    there = {path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert packed == {path.relative_to(ROOT).as_posix() for path in there}


@pytest.mark.slow
def test_an_installed_wheel_plans_a_recipe_far_from_any_checkout(wheel: Path, tmp_path: Path) -> None:
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip("install", wheel, "--no-deps", "--no-compile", "--target", installed)
    environment = outside(PYTHONPATH=str(installed))

    def said(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command], cwd=elsewhere, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    plan = "import ensemw2s; print(ensemw2s.__file__); from ensemw2s.cli.main import app; app(['plan', 'quickstart'])"
    place, first, *_ = said("-c", plan).splitlines()
    assert place == str(installed / "ensemw2s" / "__init__.py")
    assert first == "quickstart, seed 0, in runs/quickstart"
    listed = said(str(installed / "bin" / "ensemw2s"), "init")
    assert all(f"  {name.rpartition('/')[2]} " in listed for name in recipes.names())
    assert list(elsewhere.iterdir()) == []


@pytest.mark.long
@pytest.mark.e2e
def test_an_installed_wheel_runs_a_recipe_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip("install", "-c", ROOT / "constraints.txt", wheel, python=python)
    settings = [part for setting in SMALL for part in ("--set", setting)]
    done = subprocess.run(
        [python.with_name("ensemw2s"), "run", "quickstart", *settings],
        cwd=tmp_path,
        env=outside(PATH=f"{python.parent}:{os.environ['PATH']}"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "quickstart" / "report.html").is_file()
