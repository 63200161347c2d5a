"""The README, the pages under docs/, and the site: links lead somewhere, commands and names that are shown exist."""

import ast
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from ensemw2s.cli.main import app

ROOT = Path(__file__).parent.parent
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / folder / "README.md" for folder in ("cluster", "benchmarks")),
]
GENERATED = {"cli.md", "environment.md"}  # by docs/hooks.py, while the site is built
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
pages = pytest.mark.parametrize("page", PAGES, ids=NAMES)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page: of its headings, and of the objects that the site describes on it."""
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    objects = set(re.findall(r"^::: (\S+)$", prose, re.MULTILINE))
    return objects | {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.slow
def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "HTTPS_PROXY": "http://127.0.0.1:9", "NO_COLOR": "1"}
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=300)
    assert built.returncode == 0, built.stdout + built.stderr
    for page in ("config", "cli", "environment", "run-directory", "method", "results"):
        assert (tmp_path / f"{page}.html").is_file()
    commands = (tmp_path / "cli.html").read_text(encoding="utf-8")
    assert all(f"ensemw2s {name}" in commands for name in get_command(app).commands)
    loaded = re.compile(r"""<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)=["']?(?:https?:)?//""")
    assert [page.name for page in tmp_path.rglob("*.html") if loaded.search(page.read_text(encoding="utf-8"))] == []


@pages
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text):
        name, _, anchor = "".join(target).partition("#")
        if name.startswith(("http://", "https://", "mailto:")) or name in GENERATED:
            continue
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append("".join(target))
    assert broken == []


def test_every_page_that_the_code_names_exists() -> None:
    """Error texts, help and comments send readers to these."""
    folders = ("ensemw2s", "configs", "cluster", "jobs", "benchmarks")
    files = [
        f for folder in folders for f in (ROOT / folder).rglob("*") if f.suffix in {".py", ".yaml", ".html", ".j2"}
    ]
    named = {
        (name, file.relative_to(ROOT).as_posix())
        for file in files
        for name in re.findall(r"\b(?:docs|cluster|benchmarks)/[\w/-]+\.md\b", file.read_text(encoding="utf-8"))
    }
    assert named, "somebody names a page"
    assert sorted((name, file) for name, file in named if not (ROOT / name).is_file()) == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 200


def test_the_architecture_lists_every_package_from_the_lowest_floor_up() -> None:
    floors = runpy.run_path(str(ROOT / "tests" / "test_layout.py"))["FLOORS"]
    table = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("|---|---|\n")[1].split("\n\n")[0]
    rows = [re.findall(r"`(\w+)(?:/|\.py)`", line.split("|")[1]) for line in table.splitlines()]
    assert [name for row in rows for name in row] == [name for floor in floors for name in floor if name != "__main__"]


def commands(page: Path) -> Iterator[list[str]]:
    """The `ensemw2s` commands of a page's blocks, as words: indented lines and fenced shell blocks."""
    text = page.read_text(encoding="utf-8")
    lines = [
        line for block in re.findall(r"```(?:sh|bash|console)\n(.*?)```", text, re.DOTALL) for line in block.split("\n")
    ]
    lines += re.findall(r"^ {4}(.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    for line in "\n".join(lines).replace("\\\n", " ").split("\n"):
        found = re.match(r"\s*(?:[\w./]*bin/)?(?:python -m )?ensemw2s ([a-z].*)$", line)
        if found:
            yield shlex.split(found[1], comments=True)


@pages
def test_every_command_that_a_page_shows_has_these_options(page: Path) -> None:
    known = get_command(app).commands
    for name, *words in commands(page):
        assert name in known, f"{page.name}: there is no `ensemw2s {name}`"
        options = {option for param in known[name].params for option in [*param.opts, *param.secondary_opts]}
        wrong = [word for word in words if word.startswith("--") and word.partition("=")[0] not in {*options, "--help"}]
        assert wrong == [], f"{page.name}: `ensemw2s {name}` has no {wrong}"


def names(module: str) -> set[str]:
    """What a module of ours defines or imports at its top level, read without importing it."""
    place = ROOT.joinpath(*module.split("."))
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


@pages
def test_every_name_that_a_snippet_imports_exists(page: Path) -> None:
    for code in blocks(page, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ensemw2s":
                assert {alias.name for alias in node.names} <= names(node.module), ast.unparse(node)


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.name)
def test_every_file_of_the_repository_that_a_page_names_exists(page: Path) -> None:
    # the changelog names files of older releases
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w./-])(?:configs|jobs|cluster|benchmarks|ensemw2s|tests)/[\w./-]+\.\w+", text))
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


@pytest.mark.slow
def test_the_snippets_that_need_an_ensemble_alone_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They run in a folder in which runs/quickstart/ has an ensemble and a student with random weights."""
    from ensemw2s.ensemble.artifact import MemberSource, save_ensemble
    from ensemw2s.models import loading, tiny

    tokenizer = tiny.train_tokenizer(["sort up down = 0 1 2 3 4 5 6 7 8 9"] * 5, 60)
    run = tmp_path / "runs" / "quickstart"
    folders = [run / "students" / "student_ensemw2s", run / "experts" / "other"]
    for seed, folder in enumerate(folders):
        loading.save_trained(tiny.create_tiny("tiny-weak", tokenizer, seed), tokenizer, folder)
    members = [MemberSource(f"m{i}", folder, 1.0, 1.0, i + 1) for i, folder in enumerate(folders)]
    save_ensemble(run / "ensemble", members=members, rule="probability", tokenizer=tokenizer)
    monkeypatch.chdir(tmp_path)
    ran = 0
    for page in PAGES:
        for code in blocks(page, "python"):
            if "from_pretrained" in code and page.parent.name == "docs":
                exec(compile(code, page.name, "exec"), {})
                ran += 1
    assert ran >= 3
