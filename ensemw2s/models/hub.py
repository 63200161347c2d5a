"""Where a model is: a name from the config comes in, a folder or a reachable hub id goes out, or one clear error.

Its own module because tokenizers and weights are looked up the same way, and because transformers answers a missing
folder, a missing repository and a dead network with the same exception, the last one after 40 seconds of retries.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

from ensemw2s.errors import ModelError
from ensemw2s.storage import remote

HUB_TIMEOUT_SECONDS = 10.0


class LoadOptions(TypedDict):
    """Keyword arguments of `from_pretrained`; `revision` only for the hub."""

    trust_remote_code: bool
    local_files_only: bool
    revision: NotRequired[str]


@dataclass(frozen=True)
class Location:
    """A model that exists: a local folder, or a repository of the Hugging Face hub.

    Attributes:
        path: The folder or the hub id.
        revision: Git revision on the hub, None for a folder.
        cached_only: The hub cannot be reached: take what the local cache has.
    """

    path: str
    revision: str | None = None
    is_folder: bool = True
    cached_only: bool = False

    def options(self) -> LoadOptions:
        """Keyword arguments of transformers' `from_pretrained` that read exactly this."""
        options = LoadOptions(trust_remote_code=False, local_files_only=self.is_folder or self.cached_only)
        if self.revision is not None:
            options["revision"] = self.revision
        return options


def locate(path: str | Path, revision: str | None = None) -> Location:
    """Finds a model by folder or hub id.

    Args:
        path: A folder, here or in object storage, or a hub id such as `org/name` or `org/name@revision`. A folder wins
            over a hub id of the same name.
        revision: Git revision on the hub; has no meaning for a folder.

    Raises:
        ModelError: If there is neither; says whether the repository does not exist or the hub cannot be reached.
    """
    text = str(path)
    folder = remote.pull(remote.local(path))
    if folder.is_dir():
        return Location(str(folder))
    if folder.exists():
        raise ModelError(f"model {text} is a file; expected a folder with config.json and safetensors weights")
    text, _, named = text.partition("@")
    if not _looks_like_hub_id(text):
        raise ModelError(f"model {remote.shown(text)}: there is no such folder")
    return _ask_hub(text, revision or named or None)


def is_here(path: str | Path, revision: str | None = None) -> bool:
    """Whether a model can be read without the network: it is a folder, or in the local cache of the hub."""
    text, _, named = str(path).partition("@")
    return remote.pull(remote.local(path)).is_dir() or (
        _looks_like_hub_id(text) and _is_cached(text, revision or named or None)
    )


def generation_ends(path: str | Path, revision: str | None = None) -> list[int]:
    """The tokens that end an answer of a model, as its generation_config.json says, or else its config.json.

    Raises:
        ModelError: There is no such model.
    """
    from transformers.utils import cached_file

    place = locate(path, revision)
    for name in ("generation_config.json", "config.json"):
        file = cached_file(place.path, name, _raise_exceptions_for_missing_entries=False, **place.options())
        if file is not None:
            named = json.loads(Path(file).read_text(encoding="utf-8")).get("eos_token_id")
            return [named] if isinstance(named, int) else list(named or [])
    return []


def _looks_like_hub_id(text: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if text.startswith((".", "/", "~")):
        return False
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


def _ask_hub(repo: str, revision: str | None) -> Location:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    at = f" at revision {revision}" if revision else ""
    try:
        HfApi().model_info(repo, revision=revision, timeout=HUB_TIMEOUT_SECONDS)
    except GatedRepoError:
        raise ModelError(f"model {repo}: the hub asks you to accept its terms and to log in (hf auth login)") from None
    except RevisionNotFoundError:
        raise ModelError(f"model {repo}: the hub has no revision {revision}") from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"model {repo} is neither a folder here nor a repository on the hub (or it is private: hf auth login)"
        ) from None
    except Exception as error:  # the http client's own error classes changed between releases of huggingface_hub
        if _is_cached(repo, revision):
            return Location(repo, revision, is_folder=False, cached_only=True)
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(
            f"model {repo}{at} is neither a folder here nor in the local cache, and the hub cannot be reached: {reason}"
        ) from None
    return Location(repo, revision, is_folder=False)


def _is_cached(repo: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repo, "config.json", revision=revision), str)
