import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from ensemw2s.errors import ModelError
from ensemw2s.models import hub
from ensemw2s.models.hub import locate


@pytest.fixture
def answer(monkeypatch):
    """The hub answers every question about a model with this exception, or with a model where it is None."""

    def use(error: Exception | None) -> None:
        def model_info(self, *args, **kwargs):
            if error is not None:
                raise error

        monkeypatch.setattr(HfApi, "model_info", model_info)

    return use


def raised(kind: type[Exception]) -> Exception:
    """An error of the hub's client; made without the response that its constructor wants."""
    return kind.__new__(kind)


def test_a_folder_wins_over_a_hub_id_of_its_name(tmp_path, monkeypatch, answer):
    answer(AssertionError("the hub was asked"))
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    location = locate("org/model")
    assert location.is_folder
    assert location.options() == {"trust_remote_code": False, "local_files_only": True}


def test_a_hub_model_is_read_at_its_revision_and_runs_no_code(answer):
    answer(None)
    assert locate("org/model@v1") == locate("org/model", "v1")
    assert locate("org/model", "v1").options() == {
        "trust_remote_code": False,
        "local_files_only": False,
        "revision": "v1",
    }


@pytest.mark.parametrize("path", ["/no/such/folder", "./missing", "~/missing", "a/b/c", "with space", "../up"])
def test_a_missing_folder_is_said_to_be_missing_without_asking_the_hub(path, answer):
    answer(AssertionError("the hub was asked"))
    with pytest.raises(ModelError, match="there is no such folder"):
        locate(path)


def test_a_file_is_not_a_model(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"model\.safetensors is a file; expected a folder"):
        locate(tmp_path / "model.safetensors")


def test_an_unreachable_hub_is_told_from_a_missing_repository(answer):
    answer(ConnectionError("name or service not known"))
    with pytest.raises(ModelError, match=r"org/model at revision v1 is neither .* the hub cannot be reached: name or"):
        locate("org/model", "v1")
    answer(raised(RepositoryNotFoundError))
    with pytest.raises(ModelError, match="neither a folder here nor a repository on the hub"):
        locate("org/model")
    answer(raised(RevisionNotFoundError))
    with pytest.raises(ModelError, match="org/model: the hub has no revision v9"):
        locate("org/model", "v9")


def test_an_unreachable_hub_does_not_matter_for_a_model_in_the_cache(answer, monkeypatch):
    answer(ConnectionError("down"))
    monkeypatch.setattr(hub, "_is_cached", lambda *_: True)
    location = locate("org/model")
    assert location.cached_only
    assert location.options()["local_files_only"]
