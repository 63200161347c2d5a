"""`ensemw2s label`: a saved ensemble and files with prompts go in, a folder with the labels contract comes out.

The folder is a stage of its own in the sense of `store`: it says what it was made from, continues when the command is
given again, and is never mixed with labels of another ensemble, input or option.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ensemw2s.cluster.connect import connect
from ensemw2s.cluster.pool import Pool
from ensemw2s.config import ClusterConfig, LabelFilter
from ensemw2s.ensemble.manifest import read_manifest
from ensemw2s.ensemble.voter import Voter
from ensemw2s.errors import ArtifactError, ConfigError
from ensemw2s.labeling.chunks import LabelJob
from ensemw2s.labeling.filters import write_kept
from ensemw2s.labeling.inputs import Settings, check_resources, pool_size, refuse_run
from ensemw2s.labeling.intake import check_input, identity, write_examples
from ensemw2s.labeling.labels import check_rejected, label_all
from ensemw2s.labeling.parts import KEPT, REJECTED
from ensemw2s.labeling.summary import LabelSummary, summarise
from ensemw2s.progress import Progress
from ensemw2s.storage import remote, store
from ensemw2s.storage.remote import shown
from ensemw2s.storage.store import Description

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
        wanted: Which labels are written into the folder `kept`, too.
    """

    ensemble: Path
    output: Path
    settings: Settings
    cluster: ClusterConfig
    wanted: LabelFilter

    @property
    def job(self) -> LabelJob:
        voter = Voter(name="label", ensemble=str(self.ensemble.resolve()))
        return LabelJob(voter, self.output / PROMPTS / "prompts.parquet", self.output)

    @cached_property
    def description(self) -> Description:
        """What the labels depend on; how many actors make them is not part of it."""
        data, labeling = self.settings.data, self.settings.labeling
        return Description(
            stage="label",
            settings={
                "ensemble": store.fingerprint_of(read_manifest(self.ensemble).model_dump(mode="json")),
                "input": identity(self.settings.source),
                "columns": self.settings.source.columns.model_dump(mode="json"),
                **{k: getattr(data, k) for k in ("prompt_template", "chat_template", "max_prompt_tokens")},
                **({} if data.system_prompt is None else {"system_prompt": data.system_prompt}),
                **labeling.deciding(),
            },
        )


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
        DataError: If the input cannot be used, or more of its rows than `labeling.max_rejected` cannot.
        ResourceError: If no actor could ever run.
    """
    _check_ensemble(work.ensemble)
    if work.wanted.min_consistency and work.settings.labeling.samples == 1:
        raise ConfigError("--min-consistency compares several samples: give --samples 8 --temperature 0.7, say")
    check_input(work.settings.source, labelled=False)
    check_resources(work.cluster, work.settings.labeling)
    description = work.description
    found = _origin(work.output)
    if found is not None and found != description:
        if not fresh:
            raise ArtifactError(
                f"{shown(work.output)} holds labels made otherwise: {store.difference(found, description)}. Use "
                "another --output, or --fresh to delete them and label again"
            )
        remote.remove(work.output)
    if store.is_done(work.output, description):
        return False
    store.resume(work.output, description)
    description.write(work.output / ORIGIN)
    remote.push(work.output / ORIGIN)
    if not remote.exists(work.job.prompts):
        write_examples(
            work.settings.source,
            work.job.prompts,
            group=work.settings.labeling.chunk_size,
            rejected=work.output / REJECTED / "input.parquet",
        )
    check_rejected([work.job], work.settings.labeling)
    return True


def label(work: LabelWork, progress: Progress, *, debug: bool = False) -> None:
    """Labels the prompts that have no label yet, on Ray; `prepare` comes before.

    Raises:
        EnsemW2SError: Whatever stops it; labels that are made stay.
    """
    settings = work.settings
    with connect(work.cluster, debug=debug) as resources, progress:
        pool = Pool.of(settings.labeling, pool_size(resources, settings.labeling))
        progress.say(f"{shown(work.output)}: {resources}, up to {pool.largest} actors")
        label_all(
            [work.job],
            data=settings.data,
            labeling=settings.labeling,
            pool=pool,
            on_progress=lambda done, total, note: progress.update("labels", done, total, note),
        )
    summarise(work.output).write(work.output)
    remote.remove(work.job.prompts.parent)
    store.finish(work.output, work.description)


def keep(work: LabelWork) -> int | None:
    """Writes the finished labels that pass the filter into the folder `kept`; how many, none if there is no filter.

    Raises:
        DataError: If the filter asks for what these labels do not have.
    """
    if work.wanted == LabelFilter():
        remote.remove(work.output / KEPT)  # of another filter
        return None
    return write_kept(work.output, work.wanted)


def summary(output: Path, kept: int | None = None) -> str:
    """A sentence on the labels in a folder."""
    found = LabelSummary.read(output)
    ended = found.finish_reasons.get("stop", 0)
    said = f"{found.labels} labels in {shown(output)}, {ended} of them ended by themselves"
    if found.labels:
        said += f", mean agreement {found.means['agreement']:.3f}"
    if found.rejected:
        said += f"; {found.rejected} rows rejected, see {shown(output / REJECTED)}"
    if found.labels and (cut := found.finish_reasons.get("length", 0)) / found.labels > 0.05:
        said += f". WARNING: {cut / found.labels:.0%} of the answers were cut at --max-new-tokens: raise it"
    if kept is not None:
        said += f"; {kept} labels kept in {shown(output / KEPT)}"
    return said


def _check_ensemble(folder: Path) -> None:
    refuse_run("--ensemble", folder)
    read_manifest(folder)


def _origin(output: Path) -> Description | None:
    """What the labels in a folder, finished or not, were made from; none for a new or empty folder."""
    if not remote.names(output) and not output.is_file():
        return None
    if (found := Description.read(output / ORIGIN)) is None:
        raise ConfigError(f"--output {shown(output)} holds something else; name a new folder, or one that `label` made")
    return found
