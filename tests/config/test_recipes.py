"""Recipes are run by their names, and written as files to edit."""

from pathlib import Path

import pytest

from ensemw2s.config import load_config, recipes
from ensemw2s.config.study import load_study
from ensemw2s.errors import ConfigError


def test_a_name_without_a_path_is_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config("quickstart").name == "quickstart"
    assert load_config(Path("tiny"), ["seed=3"]).seed == 3
    assert load_study("ablation").name == "ablation"


def test_a_recipe_is_found_even_beside_a_folder_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()
    assert load_config("quickstart").name == "quickstart"


@pytest.mark.parametrize("given", ["mine.yaml", "mine.yml", "./mine", "folder/mine", "/folder/mine.yaml"])
def test_what_has_a_folder_or_an_ending_is_a_path(given: str) -> None:
    assert recipes.find(given) == Path(given)


def test_a_file_without_an_ending_is_still_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").write_text("name: mine\n")
    assert recipes.find("mine") == Path("mine")


def test_an_unknown_recipe_is_answered_with_the_nearest_and_with_how_to_name_a_file() -> None:
    with pytest.raises(ConfigError, match=r"no recipe quikstart; did you mean quickstart\? Valid: .*quikstart\.yaml"):
        load_config("quikstart")
    with pytest.raises(ConfigError, match=r"no study quickstart\. Valid: ablation, "):
        load_study("quickstart")


def test_a_mistake_names_the_recipe() -> None:
    with pytest.raises(ConfigError, match=r"^quickstart has a mistake:\n  boosting\.rounds: "):
        load_config("quickstart", ["boosting.rounds=0"])


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_has_a_summary_of_a_line(name: str) -> None:
    said = recipes.summary(name)
    assert said.endswith(".")
    assert 20 < len(said) <= 120
    assert "#" not in said


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_can_be_written_under_another_name_and_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file, command = recipes.write("mine", name)
    assert (file, command) == (Path("mine.yaml"), "study" if "studies" in name else "plan")
    read = load_study(file) if "studies" in name else load_config(file)
    assert read.name == "mine"
    assert file.read_text(encoding="utf-8").startswith("# "), "comments come along"


def test_a_recipe_written_under_its_own_name_is_a_copy(tmp_path: Path) -> None:
    file, _ = recipes.write("quickstart", "quickstart", tmp_path / "copy.yaml")
    assert file.read_bytes() == (recipes.FOLDER / "quickstart.yaml").read_bytes()
    file, _ = recipes.write("studies/tiny", "studies/tiny", tmp_path / "study.yaml")
    assert load_study(file).name == "tiny"


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("years of work")
    with pytest.raises(ConfigError, match=r"mine\.yaml is there already: name another file with --output FILE"):
        recipes.write("mine", "quickstart", tmp_path / "mine.yaml")
    assert (tmp_path / "mine.yaml").read_text() == "years of work"


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no recipe quikstart; did you mean quickstart"):
        recipes.write("mine", "quikstart", tmp_path / "mine.yaml")
    with pytest.raises(ConfigError, match="my run cannot be a run's name: use letters, digits"):
        recipes.write("my run", "quickstart", tmp_path / "mine.yaml")
    with pytest.raises(ConfigError, match=r"mine\.yaml cannot be written: No such file or directory"):
        recipes.write("mine", "quickstart", tmp_path / "nowhere" / "mine.yaml")
    assert list(tmp_path.iterdir()) == []
