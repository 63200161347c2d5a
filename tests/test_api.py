"""What `from ensemw2s import ...` gives, and that it costs nothing before it is used."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

import ensemw2s


def test_every_public_name_is_what_its_module_defines() -> None:
    from ensemw2s.config import load_config
    from ensemw2s.ensemble.artifact import Ensemble
    from ensemw2s.ensemble.engine import Engine
    from ensemw2s.ensemble.requests import Request
    from ensemw2s.pipeline.run import run

    assert (ensemw2s.load_config, ensemw2s.run) == (load_config, run)
    assert (ensemw2s.Ensemble, ensemw2s.Engine, ensemw2s.Request) == (Ensemble, Engine, Request)
    assert {"load_config", "run", "Ensemble", "Engine", "Request", "__version__"} == set(ensemw2s.__all__)
    assert set(ensemw2s.__all__) <= set(dir(ensemw2s))


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'ensemw2s' has no attribute 'Enigne'"):
        ensemw2s.Enigne  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Enigne'"):
        from ensemw2s import Enigne  # noqa: F401


def test_importing_the_package_imports_nothing_else() -> None:
    code = """
    import sys
    before = set(sys.modules)
    import ensemw2s
    new = {name.split(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names) - {"ensemw2s"}
    assert not new, new
    assert [name for name in sys.modules if name.startswith("ensemw2s")] == ["ensemw2s"]
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_type_checkers_see_the_public_names() -> None:
    assert (Path(ensemw2s.__file__).parent / "py.typed").is_file()


def test_a_saved_ensemble_answers(tmp_path: Path) -> None:
    from ensemw2s import Engine, Ensemble, Request
    from ensemw2s.ensemble.artifact import MemberSource, save_ensemble
    from ensemw2s.models import loading, tiny

    tokenizer = tiny.train_tokenizer(["sort 0 1 2 3 4 5 6 7 8 9"] * 5, 40)
    for seed in (0, 1):
        loading.save_trained(tiny.create_tiny("tiny-weak", tokenizer, seed), tokenizer, tmp_path / str(seed))
    members = [MemberSource(f"m{seed}", tmp_path / str(seed), 1.0, 1.0, seed + 1) for seed in (0, 1)]
    save_ensemble(tmp_path / "ensemble", members=members, rule="probability", tokenizer=tokenizer)
    ensemble = Ensemble.from_pretrained(tmp_path / "ensemble")
    prompt = ensemble.tokenizer("sort 3 1").input_ids
    [(index, answer)] = Engine(ensemble.model, slots=8).run([Request(prompt, max_new_tokens=4)])
    assert (index, len(answer.token_ids), answer.votes.shape) == (0, 4, (4, 2))


def test_the_version_stands_in_the_changelog_and_in_the_citation() -> None:
    root = Path(__file__).parent.parent
    assert f"\n## [{ensemw2s.__version__}] - " in (root / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == ensemw2s.__version__
    assert f"## [{ensemw2s.__version__}] - {citation['date-released']}" in (root / "CHANGELOG.md").read_text()


def test_what_github_reads_is_yaml() -> None:
    github = Path(__file__).parent.parent / ".github"
    workflow = yaml.safe_load((github / "workflows" / "test.yml").read_text(encoding="utf-8"))
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    targets = re.findall(r"^([a-z-]+):", (github.parent / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert {command.split()[1] for command in commands if command.startswith("make ")} <= set(targets)
    assert {command.split()[0] for command in commands} == {"make", ".ci/plan", "git"}
    for form in (github / "ISSUE_TEMPLATE").glob("*.yml"):
        assert yaml.safe_load(form.read_text(encoding="utf-8"))
