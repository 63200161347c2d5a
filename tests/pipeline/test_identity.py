"""How a model that exists already is told from another one."""

from pathlib import Path

import pytest

from ensemw2s.config import DataConfig
from ensemw2s.pipeline import identity
from ensemw2s.pipeline.identity import model_identity

from .test_build import EVALUATION, TABLES, config, fingerprints


@pytest.fixture
def model(tmp_path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "README.md").write_text("read me")
    return folder


def test_a_ready_model_is_known_by_what_its_files_hold(model):
    def names() -> dict[str, str]:
        return fingerprints(**{"models.strong.base": str(model)})

    before = names()
    assert "models/strong" not in before, "there is nothing to do for it"
    (model / "README.md").write_text("read me again")
    assert names() == before
    (model / "model.safetensors").write_bytes(b"WEIGHTS")
    assert {name for name, found in names().items() if found != before[name]} == TABLES | EVALUATION


def test_a_model_on_the_hub_is_known_by_its_revision():
    one, other = (config(**{"models.strong": {"base": "a/b", "revision": r}}).models.strong for r in ("v1", "v2"))
    assert model_identity(one) == {"base": "a/b", "revision": "v1"}
    assert model_identity(one) != model_identity(other)


def test_weights_are_read_once_per_process_until_they_change(model, monkeypatch):
    """Every cell of a study has a graph of its own, of the same bases."""
    read: list[str] = []
    file_hash = identity.file_hash
    monkeypatch.setattr(identity, "file_hash", lambda file: read.append(file.name) or file_hash(file))
    base = config(**{"models.strong.base": str(model)}).models.strong
    before = model_identity(base)
    assert model_identity(base) == before
    assert sorted(read) == ["config.json", "model.safetensors"]
    (model / "model.safetensors").write_bytes(b"more weights")
    assert model_identity(base) != before
    assert read[2:] == ["model.safetensors"]


def test_a_source_without_multiple_choice_has_the_identity_that_it_had_before():
    columns = {"prompt": "q", "answer": "a", "choices": "c"}
    source = {"kind": "files", "paths": ["a.jsonl"], "columns": columns}
    plain = DataConfig(source=source, split={"mode": "random"})
    chosen = DataConfig(source=source | {"columns": columns | {"multiple_choice": {}}}, split={"mode": "random"})
    assert "multiple_choice" not in identity.data_tree(plain)["source"]["columns"]
    assert "multiple_choice" in identity.data_tree(chosen)["source"]["columns"]


@pytest.mark.parametrize(("key", "value"), [("shots", 2), ("system_prompt", "Be brief.")])
def test_settings_that_older_runs_do_not_have_count_only_where_they_are_used(key, value):
    source = {"kind": "files", "paths": ["a.jsonl"]}
    plain = DataConfig(source=source, split={"mode": "random"}, chat_template=True)
    assert key not in identity.data_tree(plain)
    assert identity.data_tree(plain.model_copy(update={key: value}))[key] == value
