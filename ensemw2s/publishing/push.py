"""A model's folder goes to the Hugging Face hub, with a card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from ensemw2s.ensemble.manifest import MANIFEST
from ensemw2s.errors import ConfigError, ResourceError
from ensemw2s.models.adapters import adapter_base
from ensemw2s.models.info import ADAPTER_CONFIG
from ensemw2s.publishing.card import CARD, Origin, card
from ensemw2s.storage import remote

ACCESS = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


@dataclass(frozen=True)
class Upload:
    """What goes to the hub.

    Attributes:
        folder: The model's folder.
        files: Its files, relative to it, in order.
        size: Their bytes.
        card: The card to add; None where the folder has one.
    """

    folder: Path
    files: list[str]
    size: int
    card: str | None


def prepare(place: str | Path) -> Upload:
    """What would be uploaded of a folder: a model, adapters on a base of the hub, or an ensemble.

    Raises:
        ConfigError: If it holds none of these, or what others could not load.
    """
    folder = remote.local(place)
    if remote.exists(folder / "config.yaml") and remote.exists(folder / "manifest.json"):
        shown = remote.shown(folder)
        raise ConfigError(
            f"{shown} is a run. Push its ensemble, {shown}/ensemble, or first export its student: "
            f"ensemw2s export {shown} DIR"
        )
    folder = remote.pull(folder)
    if not any((folder / name).is_file() for name in ("config.json", ADAPTER_CONFIG, MANIFEST)):
        raise ConfigError(f"{remote.shown(folder)} holds no model (config.json, {ADAPTER_CONFIG} or {MANIFEST})")
    if (folder / ADAPTER_CONFIG).is_file() and Path(base := adapter_base(folder)["path"]).is_dir():
        raise ConfigError(
            f"{remote.shown(folder)} holds adapters on a base that others do not have, {base}: export it first "
            f"(ensemw2s export {remote.shown(folder)} DIR) and push that"
        )
    files = sorted(
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
    size = sum((folder / name).stat().st_size for name in files)
    return Upload(folder, files, size, None if CARD in files else card(Origin.of(folder)))


def push(upload: Upload, repo: str, *, public: bool = False, revision: str | None = None) -> str:
    """Uploads a folder in one commit, into a repository that is made if it is missing.

    Args:
        upload: What goes there.
        repo: Hub id, `name` or `org/name`.
        public: Of a repository that is made here: everyone can read it.
        revision: Branch; made if it is missing. Default: main.

    Returns:
        The address of the commit.

    Raises:
        ConfigError: If the name is none, there is no access, or the hub refuses.
        ResourceError: If the hub cannot be reached.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"{repo} is no name of a repository on the hub: {error}") from None
    operations = [CommitOperationAdd(name, str(upload.folder / name)) for name in upload.files]
    if upload.card is not None:
        operations.append(CommitOperationAdd(CARD, upload.card.encode()))
    api = HfApi(library_name="ensemw2s")
    try:
        made = api.create_repo(repo, private=not public, exist_ok=True)
        if revision is not None:
            api.create_branch(made.repo_id, branch=revision, exist_ok=True)
        commit = api.create_commit(made.repo_id, operations, commit_message="Upload with ensemw2s", revision=revision)
    except LocalTokenNotFoundError:
        raise ConfigError(f"the hub does not know you: {ACCESS}") from None
    except HfHubHTTPError as error:
        raise _refused(error, repo) from error
    except Exception as error:  # the http client's own error classes changed between releases of huggingface_hub
        raise ResourceError(f"the hub cannot be reached: {' '.join(str(error).split())}") from error
    return str(commit.commit_url)


def _refused(error: HfHubHTTPError, repo: str) -> ConfigError | ResourceError:
    status = error.response.status_code
    if status == 401:
        return ConfigError(f"the hub does not know you: {ACCESS}")
    if status == 403:
        return ConfigError(f"you may not write to {repo} with this token: {ACCESS}")
    said = (error.server_message or str(error)).strip().splitlines()[0]
    if status >= 500:
        return ResourceError(f"the hub answers with an error ({status}): {said}")
    return ConfigError(f"the hub refuses {repo} ({status}): {said}")
