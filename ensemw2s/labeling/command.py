"""`ensemw2s label`: a saved ensemble and files with prompts go in, a folder with the labels contract comes out.

The folder is a stage of its own in the sense of `store`: it says what it was made from, continues when the command is
given again, and is never mixed with labels of another ensemble, input or option.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ensemw2s import cluster, store
from ensemw2s.config import ClusterConfig
from ensemw2s.data.readers import make_reader
from ensemw2s.ensemble.manifest import MANIFEST, read_manifest
from ensemw2s.ensemble.voter import Voter
from ensemw2s.errors import ArtifactError, ConfigError
from ensemw2s.labeling.inputs import Settings, check_input, check_resources, pool_size, write_examples
from ensemw2s.labeling.labels import LabelJob, label_all, read_labels
from ensemw2s.progress import Progress

PROMPTS = ".prompts"
ORIGIN = "labels.json"
"""What the labels in a folder were made from: the mark of a folder that is this command's own."""


@dataclass(frozen=True)
class LabelWork:
    """What `ensemw2s label` was asked for.

    Attributes:
        ensemble: Folder of the artifact.
        output: Folder of the labels.
        settings: Input, rendering and decoding.
        cluster: Which Ray.
    """

    ensemble: Path
    output: Path
    settings: Settings
    cluster: ClusterConfig

    @cached_property
    def description(self) -> dict[str, Any]:
        """What the labels depend on; how many actors make them is not part of it."""
        data, labeling = self.settings.data, self.settings.labeling
        return {
            "stage": "label",
            "settings": {
                "ensemble": store.fingerprint_of(read_manifest(self.ensemble).model_dump(mode="json")),
                "input": make_reader(self.settings.source).identity()["files"],
                "columns": self.settings.source.columns.model_dump(mode="json"),
                **{k: getattr(data, k) for k in ("prompt_template", "chat_template", "max_prompt_tokens")},
                **labeling.deciding(),
            },
            "inputs": {},
        }


def prepare(work: LabelWork, *, fresh: bool = False) -> bool:
    """Checks everything that can be checked without Ray, and puts the prompts into the output folder.

    Args:
        work: What to label.
        fresh: Delete labels that were made otherwise.

    Returns:
        Whether there is anything left to label.

    Raises:
        ConfigError: If the output folder holds something that is no labels.
        ArtifactError: If the ensemble is damaged, or the folder holds labels made otherwise and `fresh` is not set.
        DataError: If the input cannot be used.
        ResourceError: If no actor could ever run.
    """
    _check_ensemble(work.ensemble)
    check_input(work.settings.source, labelled=False)
    check_resources(work.cluster, work.settings.labeling)
    description = work.description
    found = _origin(work.output)
    if found is not None and found != description:
        if not fresh:
            raise ArtifactError(
                f"{work.output} holds labels made otherwise: {store.difference(found, description)}. Use another "
                "--output, or --fresh to delete them and label again"
            )
        shutil.rmtree(work.output)
    if store.is_done(work.output, description):
        return False
    store.resume(work.output, description)
    store.write_json(work.output / ORIGIN, description)
    prompts = work.output / PROMPTS / "prompts.parquet"
    if not prompts.exists():
        write_examples(work.settings.source, prompts, labelled=False, group=work.settings.labeling.chunk_size)
    return True


def label(work: LabelWork, progress: Progress, *, debug: bool = False) -> None:
    """Labels the prompts that have no label yet, on Ray; `prepare` comes before.

    Raises:
        EnsemW2SError: Whatever stops it; labels that are made stay.
    """
    prompts, settings = work.output / PROMPTS / "prompts.parquet", work.settings
    job = LabelJob(Voter(name="label", ensemble=str(work.ensemble.resolve())), prompts, work.output)
    with cluster.connect(work.cluster, debug=debug) as resources, progress:
        actors = pool_size(resources, settings.labeling)
        progress.say(f"{work.output}: {resources}, up to {actors} actors")
        label_all(
            [job],
            data=settings.data,
            labeling=settings.labeling,
            actors=actors,
            on_progress=lambda done, total, note: progress.update("labels", done, total, note),
        )
    shutil.rmtree(prompts.parent)
    store.finish(work.output, work.description)


def summary(output: Path) -> str:
    """A sentence on the labels in a folder."""
    table = read_labels(output)
    ended = sum(reason == "stop" for reason in table["finish_reason"].to_pylist())
    agreement = table["agreement"].to_numpy().mean()
    return f"{len(table)} labels in {output}, {ended} of them ended by themselves, mean agreement {agreement:.3f}"


def _check_ensemble(folder: Path) -> None:
    inside = folder / "ensemble"
    if not (folder / MANIFEST).exists() and (inside / MANIFEST).exists():
        raise ConfigError(f"--ensemble {folder} is a run; its ensemble is {inside}")
    read_manifest(folder)


def _origin(output: Path) -> dict[str, Any] | None:
    """What the labels in a folder, finished or not, were made from; none for a new or empty folder."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    if not (output / ORIGIN).is_file():
        raise ConfigError(f"--output {output} holds something else; name a new folder, or one that `label` made")
    found: dict[str, Any] = store.read_json(output / ORIGIN)
    return found
