import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from ensemw2s import env

PACKAGE = Path(__file__).parent.parent / "ensemw2s"


def touches(tree: ast.AST) -> Iterator[int]:
    """Lines that reach for the environment of the process."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv", "putenv", "unsetenv"):
            yield node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            yield from (node.lineno for alias in node.names if "env" in alias.name)


def test_no_other_module_touches_the_environment() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != PACKAGE / "env.py"
        for line in touches(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == [], "give the variable a name in env.py, and read or set it by that"


@pytest.mark.parametrize("text", ["import os\nos.environ['A']", "import os\nos.getenv('A')", "from os import environ"])
def test_every_way_to_the_environment_is_seen(text: str) -> None:
    assert list(touches(ast.parse(text)))


def test_every_variable_is_used_and_has_a_name_of_its_own() -> None:
    texts = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    names = [name for name, value in vars(env).items() if isinstance(value, env.Variable)]
    assert [name for name in names if f"env.{name}" not in texts] == []
    assert len({variable.name for variable in env.VARIABLES}) == len(names)


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch) -> None:
    monkeypatch.setenv("ENSEMW2S_LOG", "json")
    assert env.LOG.get() == "json"
    monkeypatch.setenv("ENSEMW2S_LOG", "")
    assert env.LOG.get() is None
    monkeypatch.delenv("ENSEMW2S_LOG")
    assert env.LOG.get() is None


def test_a_setting_gives_way_to_what_the_user_has_set(monkeypatch) -> None:
    monkeypatch.delenv("RAY_task_retry_delay_ms", raising=False)
    env.RAY_RETRY_DELAY.set_default()
    monkeypatch.setenv("DS_ACCELERATOR", "xpu")
    env.DS_ACCELERATOR.set_default("cpu")
    assert (env.RAY_RETRY_DELAY.get(), env.DS_ACCELERATOR.get()) == ("3000", "xpu")
    with pytest.raises(AssertionError, match="DS_ACCELERATOR has no value of its own"):
        env.DS_ACCELERATOR.set_default()


def test_the_table_has_every_variable_once() -> None:
    text = env.table()
    for variable in env.VARIABLES:
        assert text.count(f"| `{variable.name}` |") == 1
        assert "|" not in variable.does
