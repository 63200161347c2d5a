"""Rules about the repository as a whole that no single module can keep: imports, places, and what may be committed."""

import ast
import functools
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent

# Rule 1 of the house: these run under torchrun, or with no launcher at all, on a machine that has no Ray.
WITHOUT_RAY = ["boosting/samme.py", "training/loop.py", "ensemble/**/*.py", "data/**/*.py", "models/**/*.py"]

# Rule 2: the floors of the package, lowest first. What stands on one line knows nothing of its neighbours.
FLOORS = [
    ["errors"],
    ["env"],
    ["faults"],
    ["progress"],
    ["storage"],
    ["config"],
    ["cluster"],
    ["data"],
    ["models"],
    ["ensemble"],
    ["boosting"],
    ["training"],
    ["labeling"],
    ["evaluation"],
    ["pipeline"],
    ["serving", "costs", "search", "publishing"],
    ["study", "pilot"],
    ["cli"],
    ["__main__"],
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# The package itself is the public API: it names what stands anywhere, and nothing in it is for the rooms but this.
FOR_ALL = {"__version__"}

MOST_LOOSE, MOST_LINES, MOST_ANY = 4, 400, 50
"""Modules beside `__init__.py`; lines of a file; lines of the whole package that have `dict[str, Any]`."""

# Tests of the whole rather than of one module, and what they are about.
WHOLE = {
    "test_layout.py": "this file",
    "test_e2e*.py": "the pipeline from the command line to the report",
    "test_acceptance*.py": "the promises of the README",
    "test_benchmarks.py": "benchmarks/",
    "test_docs.py": "the README, the pages and the site that is built from them",
    "test_faults*.py": "real kills of a whole run",
    "test_image.py": "cluster/Dockerfile",
    "test_api.py": "what `from ensemw2s import ...` gives",
    "test_wheel.py": "the package as it is installed outside a checkout",
}

# The home folder inside Ray's own images is no machine's.
MACHINE_PATH = re.compile(
    r"(?<![\w.~/}-])/(?:root|work|Users/\w+|home/(?!ray\b)\w+|opt/(?:pypi|wheels)[\w-]*)(?![\w-])"
)
PACKAGE_INDEX = re.compile(r"--(?:extra-)?index-url|--find-links|https?://[^\s\"'`]+/(?:simple|whl)\b")


def imported(path: Path, root: Path, *, everywhere: bool = True, types: bool = True) -> list[str]:
    """Dotted names that a file imports.

    Args:
        path: The file.
        root: The folder that names are relative to.
        everywhere: Inside functions, too; else only what importing the file itself imports.
        types: With `everywhere`, also what stands under `if TYPE_CHECKING`.
    """
    package = path.relative_to(root).parent.parts
    return imported_in(path.read_text(encoding="utf-8"), package, everywhere=everywhere, types=types)


@functools.cache
def imported_in(text: str, package: tuple[str, ...], *, everywhere: bool, types: bool) -> list[str]:
    """The same of a file's text; many tests ask for the same files."""
    names: list[str] = []
    tree = ast.parse(text)
    for node in called(tree, types=types) if everywhere else executed(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*parents, *([node.module] if node.module else [])])
            names += [f"{module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names += [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    return names


def called(tree: ast.AST, *, types: bool) -> Iterator[ast.AST]:
    """What may run at any time; with `types` also what only a type checker reads."""
    left = [tree]
    while left:
        children = [node for node in ast.iter_child_nodes(left.pop()) if types or not for_types(node)]
        yield from children
        left += children


def for_types(node: ast.AST) -> bool:
    """Whether this is `if TYPE_CHECKING`; its opposite, `if not TYPE_CHECKING`, runs."""
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when a module is imported: no bodies of functions, nothing under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if for_types(child):
            continue
        yield child
        yield from executed(child)


def way_to(package: str, path: Path, root: Path, seen: set[Path] | None = None) -> list[str]:
    """Chain of imports from a file to another package by way of this one's modules; empty where there is none."""
    seen = set() if seen is None else seen
    seen.add(path)
    here = path.relative_to(root).as_posix()
    own = [".".join(path.relative_to(root).parent.parts)]  # importing a module executes its packages first
    for name in [*imported(path, root, everywhere=False), *own]:
        if name.split(".")[0] == package:
            return [here, name]
        steps = [root.joinpath(*name.split(".")[: i + 1]) for i in range(name.count(".") + 1)]
        for file in [f for step in steps for f in (step / "__init__.py", step.with_suffix(".py"))]:
            if file not in seen and is_there(file) and (way := way_to(package, file, root, seen)):
                return [here, *way]
    return []


@functools.cache
def is_there(file: Path) -> bool:
    return file.is_file()


def modules(root: Path, package: str) -> dict[str, Path]:
    """Every module of a package by its dotted name; a package's `__init__.py` by the package's."""
    found = {}
    for path in sorted((root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def arrows_up(root: Path, package: str, floor: dict[str, int]) -> list[str]:
    """Imports from a room into one above it or beside it, for types included."""
    wrong = []
    for name, path in modules(root, package).items():
        if name == package:
            continue
        own = name.split(".")[1]
        for target in imported(path, root):
            first, _, rest = target.partition(".")
            room = rest.split(".")[0]
            if first != package or room == own or room in FOR_ALL:
                continue
            if own not in floor or room not in floor or floor[room] >= floor[own]:
                wrong.append(f"{name} imports {target}")
    return wrong


def circles(root: Path, package: str) -> list[list[str]]:
    """Modules that import each other, by whatever way and at whatever time; imports for types alone do not count."""
    known = modules(root, package)
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        graph[name] = set()
        for target in imported(path, root, types=False):
            parts = target.split(".")
            ways = [".".join(parts[:i]) for i in range(len(parts), 0, -1)]
            nearest = next((way for way in ways if way in known), None)
            if nearest is not None:
                graph[name].add(nearest)
    while gone := [name for name, targets in graph.items() if not targets]:  # what imports nothing is in no circle
        graph = {name: targets - set(gone) for name, targets in graph.items() if targets}
    while unread := set(graph) - set().union(*graph.values()):  # nor what nobody imports
        graph = {name: targets for name, targets in graph.items() if name not in unread}
    return [[name, *sorted(targets)] for name, targets in graph.items()]


def package_files() -> list[Path]:
    return sorted((ROOT / "ensemw2s").rglob("*.py"))


def test_no_import_runs_up_to_a_higher_floor_or_to_a_neighbour() -> None:
    assert arrows_up(ROOT, "ensemw2s", FLOOR) == [], "move what is imported down, or hand it over as an argument"


def test_no_modules_import_each_other() -> None:
    assert circles(ROOT, "ensemw2s") == [], "what both need belongs into a module below them"


def test_few_modules_stand_outside_the_rooms() -> None:
    loose = [path.name for path in (ROOT / "ensemw2s").glob("*.py") if path.name != "__init__.py"]
    assert len(loose) <= MOST_LOOSE, f"{loose}: a module belongs into a room"


def test_no_file_is_too_long_to_read() -> None:
    long = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in package_files()}
    assert {name: lines for name, lines in long.items() if lines > MOST_LINES} == {}, "split it along its data's flow"


def test_what_crosses_a_border_has_a_type() -> None:
    lines = [line for path in package_files() for line in path.read_text().splitlines() if "dict[str, Any]" in line]
    assert len(lines) <= MOST_ANY, "say what is in the mapping: a record, a TypedDict, or the type of its values"


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("from p.low import x", []),
        ("from p import __version__", []),
        ("from p.high import x", ["p.mid.a imports p.high.x"]),
        ("def f():\n    from p import high", ["p.mid.a imports p.high"]),
        ("if TYPE_CHECKING:\n    import p.high.b", ["p.mid.a imports p.high.b"]),
        ("from ..high import b", ["p.mid.a imports p.high.b"]),
        ("from p.beside import x", ["p.mid.a imports p.beside.x"]),
        ("from p import something", ["p.mid.a imports p.something"]),
        ("import importlib\nimportlib.import_module('p.high')", ["p.mid.a imports p.high"]),
    ],
)
def test_every_arrow_up_is_seen(tmp_path: Path, text: str, wrong: list[str]) -> None:
    for room in ("low", "mid", "beside", "high"):
        (tmp_path / "p" / room).mkdir(parents=True)
    (tmp_path / "p" / "mid" / "a.py").write_text(text)
    assert arrows_up(tmp_path, "p", {"low": 0, "mid": 1, "beside": 1, "high": 2}) == wrong


def test_a_circle_is_seen_through_functions_but_not_through_types(tmp_path: Path) -> None:
    package = tmp_path / "p"
    package.mkdir()
    (package / "a.py").write_text("from p import b, below\n")
    (package / "b.py").write_text("def f():\n    from p.c import x\n")
    (package / "below.py").write_text("if TYPE_CHECKING:\n    from p import a\n")
    (package / "above.py").write_text("import p.a\n")
    (package / "c.py").write_text("")
    assert circles(tmp_path, "p") == []
    (package / "c.py").write_text("from .a import x\n")
    assert circles(tmp_path, "p") == [["p.a", "p.b"], ["p.b", "p.c"], ["p.c", "p.a"]]


def core_files() -> list[Path]:
    package = ROOT / "ensemw2s"
    return sorted({path for pattern in WITHOUT_RAY for path in package.glob(pattern)})


@pytest.mark.parametrize("path", core_files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_core_imports_no_ray(path: Path) -> None:
    direct = [name for name in imported(path, ROOT, everywhere=True) if name.split(".")[0] == "ray"]
    assert direct == [], "Ray stands at the edges: move this import to a module that may know it"
    assert way_to("ray", path, ROOT) == [], "importing this file imports Ray by way of other modules"


@pytest.mark.parametrize(
    "name", ["pipeline/run.py", "pipeline/plan.py", "labeling/label_files.py", "evaluation/saved.py", "study/study.py"]
)
def test_a_command_imports_nothing_that_holds_models(name: str) -> None:
    assert way_to("peft", ROOT / "ensemw2s" / name, ROOT) == [], "the command would start seconds later"


@pytest.mark.parametrize(
    "text",
    [
        "import ray",
        "import os, ray.data as rd",
        "from ray import train",
        "def f():\n    from ray.data import Dataset",
        "import importlib\nx = importlib.import_module('ray.train')",
    ],
)
def test_every_way_to_import_ray_is_seen(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.py").write_text(text)
    assert any(name.split(".")[0] == "ray" for name in imported(tmp_path / "a.py", tmp_path, everywhere=True))


def test_a_way_to_ray_through_other_modules_and_packages_is_seen(tmp_path: Path) -> None:
    package = tmp_path / "p"
    package.mkdir()
    (package / "__init__.py").write_text("from p import edge\n")
    (package / "edge.py").write_text("import ray\n")
    (package / "lazy.py").write_text("def f():\n    from . import edge\n")
    assert way_to("ray", package / "lazy.py", tmp_path) == ["p/lazy.py", "p/__init__.py", "p/edge.py", "ray"]
    (package / "__init__.py").write_text("")
    assert way_to("ray", package / "lazy.py", tmp_path) == []
    (package / "eager.py").write_text("from .edge import something\nimport rayon\n")
    assert way_to("ray", package / "eager.py", tmp_path) == ["p/eager.py", "p/edge.py", "ray"]


def test_tests_mirror_the_package() -> None:
    """tests/a/test_x.py is about ensemw2s/a/x.py (or about a/x.*: jobs, benchmarks), or is listed in WHOLE.

    A module with many claims may have several files: test_x.py and test_x_<aspect>.py.
    """
    strays = []
    for test in sorted((ROOT / "tests").rglob("test_*.py")):
        place = test.relative_to(ROOT / "tests")
        if any(fnmatch(place.name, pattern) for pattern in WHOLE) or has_module(place):
            continue
        strays.append(place.as_posix())
    assert strays == [], "name these after the module that they test, or list them in WHOLE with what they are about"


def has_module(place: Path) -> bool:
    """Whether a module, or a package, of this name exists; `place` is relative to tests/."""
    words = place.stem.removeprefix("test_").split("_")
    names = ["_".join(words[:i]) for i in range(len(words), 0, -1)]
    if len(place.parts) > 1 and any(list((ROOT / place.parent).glob(f"{name}.*")) for name in names):
        return True
    folder = ROOT / "ensemw2s" / place.parent
    return any((folder / f"{name}.py").is_file() or (folder / name).is_dir() for name in names)


def committed_files() -> list[Path]:
    """Files that git tracks. A source archive has no git, and nothing in it can be committed."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run([git, "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_nothing_committed_names_this_machine_or_a_package_index() -> None:
    found = []
    for path in committed_files():
        if path == Path(__file__).resolve():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if MACHINE_PATH.search(line) or PACKAGE_INDEX.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    assert found == []


@pytest.mark.parametrize(
    "line", ["cd /root/x", 'p = "/work/main"', "/home/anna/data", "(/Users/anna)", "/opt/pypi/simple", "at /work"]
)
def test_paths_of_a_machine_are_recognised(line: str) -> None:
    assert MACHINE_PATH.search(line)


@pytest.mark.parametrize(
    "line", ["https://example.org/work/x", "runs/root", "~/work", "/home/ray/app", "/rootfs", "/workers", "${X}/home/y"]
)
def test_other_paths_are_left_alone(line: str) -> None:
    assert not MACHINE_PATH.search(line)


def test_every_dependency_is_pinned_within_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    odd = [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)]
    assert odd == [], "a pin is name==version: no address, no path and no suffix of a build"
    pins = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    optional = project["optional-dependencies"].values()
    for text in [*project["dependencies"], *(text for group in optional for text in group)]:
        requirement = Requirement(text)
        version = pins.get(canonicalize_name(requirement.name))
        assert version is not None, f"{text} is not pinned: `make lock`"
        assert requirement.specifier.contains(version, prereleases=True), f"{text} does not allow the pinned {version}"
    assert pins["torch"] == "2.13.0"


def test_the_package_alone_brings_no_test_tools_no_clouds_and_no_trackers() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    names = {extra: {canonicalize_name(Requirement(text).name) for text in extras[extra]} for extra in extras}
    alone = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    assert {"moto", "schemathesis", "lm-eval", "pytest"} <= names["dev"]
    assert not alone & set().union(*names.values())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_the_demo_installs_the_package_alone_and_tests_add_their_tools_to_it(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)

    def installed(target: str) -> list[str]:
        said = subprocess.run(["make", "-n", target], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        return re.findall(r"pip install .* -e '(.*)'", said)

    assert installed("demo") == installed("setup") == ["."]
    for target in ("test", "test-fast", "docs", "wheel"):
        assert installed(target) == [".[dev]"], "at once"
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/.setup-done").touch()
    assert installed("demo") == []
    assert installed("test") == [".[dev]"], "pip leaves what is there"
    (tmp_path / ".venv/.dev-done").touch()
    assert installed("test") == []


def test_every_make_target_that_a_page_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        text = page.read_text(encoding="utf-8")
        named = set(re.findall(r"(?:`|^ {4}|^\$ )make ([a-z-]+)", text, flags=re.MULTILINE))
        assert named <= targets, f"{page.name} names targets that the Makefile lacks"
