"""Model cards: a model's folder and the run that it comes from go in, a README.md that the hub reads comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers.utils import cached_file

from ensemw2s import __version__
from ensemw2s.config.systems import ENSEMW2S, TABLE
from ensemw2s.config.tree import read_tree
from ensemw2s.data.shots import TEMPLATE
from ensemw2s.ensemble.manifest import MANIFEST
from ensemw2s.errors import EnsemW2SError
from ensemw2s.evaluation.records import Metrics, RunResults
from ensemw2s.evaluation.wording import NOTHING, percent, percent_range
from ensemw2s.labeling.inputs import run_of
from ensemw2s.models.hub import locate
from ensemw2s.models.info import ADAPTER_CONFIG
from ensemw2s.models.tiny import TINY_ARCHITECTURES
from ensemw2s.storage import remote

CARD = "README.md"
NOT_STATED = "not stated"
PROJECT = "[EnsemW2S](https://arxiv.org/abs/2505.21959)"
TESTS = {"id": "ID: easy examples", "ood": "OOD: hard examples"}


@dataclass(frozen=True)
class Base:
    """A model that another one was made from.

    Attributes:
        name: Hub id, folder, or name in the embedded family.
        on_hub: Whether others can find it under that name.
        license: As its own card says it; None where that is not known.
    """

    name: str
    on_hub: bool
    license: str | None


@dataclass(frozen=True)
class Origin:
    """Where a model comes from.

    Attributes:
        folder: The model's own folder.
        run: Name of the run that it lies in; None for a folder that has left its run.
        system: Its name in that run's results; None where it has none of its own.
        tree: The run's config as plain values.
        results: The run's results; None before its end.
    """

    folder: Path
    run: str | None
    system: str | None
    tree: Mapping[str, Any]
    results: RunResults | None

    @classmethod
    def of(cls, folder: Path) -> Origin:
        """Reads what the run around a folder left."""
        run = run_of(folder)
        if run is None:
            return cls(folder, None, None, {}, None)
        inside = folder.resolve().relative_to(run.resolve()).parts
        system = ENSEMW2S if inside == ("ensemble",) else inside[1] if len(inside) > 1 and inside[1] in TABLE else None
        file = run / "results.json"
        results = RunResults.read(file) if remote.exists(file) else None
        tree, shots = read_tree(run / "config.yaml"), run / "data" / TEMPLATE
        if remote.exists(shots):
            tree["data"]["prompt_template"] = remote.pull(shots).read_text(encoding="utf-8")
        return cls(folder, run.name, system, tree, results)

    @property
    def is_ensemble(self) -> bool:
        return (self.folder / MANIFEST).is_file()

    @property
    def is_adapters(self) -> bool:
        return (self.folder / ADAPTER_CONFIG).is_file()

    def bases(self) -> list[Base]:
        """The models that the run started from, of a student the strong one; with their licences."""
        models = self.tree.get("models") or {}
        strong = self.system is not None and self.system.startswith("student")
        named = [models.get("strong")] if strong else models.get("weak") or []
        return [
            base_of(model["base"], model.get("revision"))
            for model in named
            if isinstance(model, dict) and "base" in model
        ]


def base_of(name: str, revision: str | None = None) -> Base:
    """A base and the licence that its own card states."""
    if name in TINY_ARCHITECTURES:
        return Base(name, False, None)
    try:
        place = locate(name, revision)
        found = cached_file(place.path, CARD, _raise_exceptions_for_missing_entries=False, **place.options())
        stated = ModelCard.load(found, ignore_metadata_errors=True).data.license if found is not None else None
    except (EnsemW2SError, OSError, ValueError):
        return Base(name, _is_hub_id(name), None)
    return Base(name, not place.is_folder, stated if isinstance(stated, str) else None)


def write_card(output: Path, origin: Origin, *, merged: bool) -> None:
    """Writes the card into a folder. Args as those of `card`."""
    (output / CARD).write_text(card(origin, merged=merged), encoding="utf-8")


def card(origin: Origin, *, merged: bool = False) -> str:
    """The card of a model: what it is, from what data, how good, and what it must not be taken for.

    Args:
        origin: Where the model comes from.
        merged: Whether adapters were merged into its base.
    """
    bases = origin.bases()
    parts = [
        f"# {origin.run or origin.folder.name}",
        _what(origin, bases, merged),
        "## Use",
        _use(origin),
        "## Data",
        _data(origin),
        "## Figures",
        _figures(origin),
        "## Base models",
        _licences(bases),
        "## Limits",
        _limits(origin),
        f"Made with ensemw2s {__version__}.",
    ]
    return f"---\n{_metadata(origin, bases, merged).to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def _metadata(origin: Origin, bases: Sequence[Base], merged: bool) -> ModelCardData:
    licences = {base.license for base in bases}
    on_hub = [base.name for base in bases if base.on_hub]
    whole = not origin.is_ensemble
    return ModelCardData(
        license=next(iter(licences)) if len(licences) == 1 else None,
        base_model=(on_hub[0] if len(on_hub) == 1 else list(dict.fromkeys(on_hub))) or None,
        library_name=("peft" if origin.is_adapters and not merged else "transformers") if whole else "ensemw2s",
        pipeline_tag="text-generation",
        tags=["weak-to-strong", "ensemw2s", *([] if whole else ["ensemble"])],
        datasets=_hub_datasets(origin.tree) or None,
        model_name=origin.run or origin.folder.name,
        eval_results=_results(origin) or None,
    )


def _what(origin: Origin, bases: Sequence[Base], merged: bool) -> str:
    names = ", ".join(dict.fromkeys(f"`{base.name}`" for base in bases))
    if origin.is_ensemble:
        of = f" They were trained from {names}." if names else ""
        return f"An ensemble of weak experts that vote on every token, made by {PROJECT}.{of}"
    kind = TABLE[origin.system].label if origin.system else "A language model"
    of = f" It was trained from {names}." if names else ""
    adapters = " LoRA adapters are merged into the weights." if merged else ""
    return f"{kind}, trained in a run of {PROJECT}: weak-to-strong generalization.{of}{adapters}"


def _use(origin: Origin) -> str:
    if origin.is_ensemble:
        return (
            "```python\nfrom huggingface_hub import snapshot_download\nfrom ensemw2s import Ensemble\n\n"
            'ensemble = Ensemble.from_pretrained(snapshot_download("NAME"))\n```'
        )
    load = '```python\nfrom transformers import pipeline\n\ngenerate = pipeline("text-generation", "NAME")\n```\n\n'
    data = origin.tree.get("data") or {}
    template, chat = data.get("prompt_template"), data.get("chat_template")
    if chat:
        return f"{load}Prompts are rendered with the tokenizer's chat template."
    if data.get("shots"):
        return f"{load}Prompts begin with solved examples. `{{prompt}}` is the question:\n\n```text\n{template}\n```"
    if template not in (None, "{prompt}"):
        return f"{load}Prompts are rendered as `{template!r}`, where `{{prompt}}` is the question."
    return f"{load}The model was trained on plain prompts: give it the question, as the data has it."


def _data(origin: Origin) -> str:
    task = origin.results.task if origin.results else None
    return " ".join(task.sentences()) if task else "This folder does not say what data it was trained on."


def _figures(origin: Origin) -> str:
    found = _metrics(origin)
    if not found:
        return "There are none in the run's results."
    rows = [
        f"| {TESTS[split]} | {percent(m.exact_match)} | {percent_range(m.ci95)} | {m.n or NOTHING} |"
        for split, m in found.items()
    ]
    seed = origin.results.seed if origin.results else None
    return (
        "| Test split | Exact match | 95 % interval | Examples |\n|---|---|---|---|\n"
        + "\n".join(rows)
        + f"\n\nThe intervals are over examples, of one run{f' with seed {seed}' if seed is not None else ''}."
    )


def _metrics(origin: Origin) -> dict[str, Metrics]:
    system = (origin.results.systems if origin.results else {}).get(origin.system or "")
    found = {split: system.on(split) for split in TESTS} if system else {}
    return {
        split: metrics for split, metrics in found.items() if metrics is not None and metrics.exact_match is not None
    }


def _results(origin: Origin) -> list[EvalResult]:
    source = origin.results.task.source if origin.results and origin.results.task else origin.run or "test"
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type="ensemw2s",
            dataset_name=f"{source} ({TESTS[split]})",
            metric_type="exact_match",
            metric_value=metrics.exact_match,
        )
        for split, metrics in _metrics(origin).items()
    ]


def _licences(bases: Sequence[Base]) -> str:
    if not bases:
        return "This folder does not say what it was trained from. Find that out before you publish it."
    rows = dict.fromkeys(f"| `{base.name}` | {base.license or NOT_STATED} |" for base in bases)
    return (
        "| Base | Licence |\n|---|---|\n"
        + "\n".join(rows)
        + "\n\nThe licences are those that the bases' own cards state. "
        "A base's licence holds for what was trained from it."
    )


def _limits(origin: Origin) -> str:
    return (
        ("The members learned" if origin.is_ensemble else "The model learned")
        + " one task from the data above, and nothing was done to make its answers safe or true elsewhere."
        + ("" if origin.is_ensemble else " Its labels were made by weaker models and hold their mistakes.")
    )


def _hub_datasets(tree: Mapping[str, Any]) -> list[str]:
    data = tree.get("data") or {}
    sources = [data.get("source") or {}, data.get("hard_source") or {}]
    return [
        str(one["path"]) for one in sources if one.get("kind") == "huggingface" and _is_hub_id(str(one.get("path")))
    ]


def _is_hub_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).is_dir()
