"""Commands on saved models: label and evaluate with them, and say what they are.

Options that `label` and `evaluate` share are the fields of `SavedOptions`. A field that has the name of a key of `data`
or `labeling` stands for that key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ensemw2s.cli import options
from ensemw2s.cli.options import option
from ensemw2s.cli.outcome import Output, before_work, outcome, say
from ensemw2s.errors import ConfigError, EnsemW2SError
from ensemw2s.storage import remote

if TYPE_CHECKING:
    from ensemw2s.config import ClusterConfig, LabelFilter
    from ensemw2s.labeling.inputs import Settings
    from ensemw2s.labeling.intake import FileSource

INPUT, DECODING, OUTPUT, RESOURCES = "Input", "Decoding", "Output", "Resources"


@dataclass(frozen=True, kw_only=True)
class SavedOptions:
    """What both commands are told: the input, how prompts are rendered and decoded, and on what."""

    inputs: Annotated[
        list[str] | None,
        option(
            "--input", "Parquet, jsonl or csv: a file, folder, URI or 'pattern'. Repeatable.", INPUT, metavar="PATH"
        ),
    ] = None
    dataset: Annotated[
        str | None,
        option("--dataset", "Instead of files: a data set's hub id, or a folder made by save_to_disk.", INPUT),
    ] = None
    dataset_split: Annotated[str, option("--split", "Split of the data set.", INPUT, show_default=True)] = "train"
    prompt_column: Annotated[
        str, option("--prompt-column", "Column of the prompt, or a Jinja template.", INPUT, show_default=True)
    ] = "prompt"
    where: Annotated[
        str | None,
        option("--where", "Only rows for which this Jinja expression is true: \"split == 'test'\".", INPUT),
    ] = None
    id_column: Annotated[
        str | None, option("--id-column", "Column of a unique id. Default: a hash of the prompt.", INPUT)
    ] = None
    prompt_template: Annotated[
        str | None,
        option("--prompt-template", "Text around the prompt; {prompt} stands for the prompt.", DECODING),
    ] = None
    chat_template: Annotated[
        bool | None,
        option("--chat-template/--no-chat-template", "Render prompts with the tokenizer's chat template.", DECODING),
    ] = None
    max_prompt_tokens: Annotated[
        int | None, option("--max-prompt-tokens", "Longest prompt, in tokens.", DECODING, min=1)
    ] = None
    answer_match: Annotated[
        str | None,
        option(
            "--answer-match",
            "When answers are the same one: exact, numeric, or a regular expression whose last match counts.",
            DECODING,
        ),
    ] = None
    max_new_tokens: Annotated[
        int | None,
        option("--max-new-tokens", "Longest answer, in tokens, including the end token.", DECODING, min=1),
    ] = None
    batch_size: Annotated[
        int | None, option("--batch-size", "Prompts that an actor decodes at once.", DECODING, min=1)
    ] = None
    max_actors: Annotated[
        int | None, option("--actors", "Most actors at once. Default: as many as fit.", RESOURCES, min=1)
    ] = None
    cpus_per_actor: Annotated[float | None, option("--cpus-per-actor", "CPUs per actor.", RESOURCES, min=0.01)] = None
    gpus_per_actor: Annotated[float | None, option("--gpus-per-actor", "GPUs per actor.", RESOURCES, min=0)] = None
    address: options.Address = None
    cpus: options.Cpus = None

    def source(self, **columns: str | None) -> FileSource:
        """The input that was asked for: files, or a data set.

        Args:
            columns: Columns beside those of the prompt and the id.
        """
        from ensemw2s.config import Columns, FilesSource, HuggingFaceSource

        if bool(self.inputs) == (self.dataset is not None):
            raise ConfigError("give one input: --input PATH, or --dataset NAME")
        named = Columns.model_validate({"prompt": self.prompt_column, "id": self.id_column, **columns})
        if self.dataset is not None:
            return HuggingFaceSource(path=self.dataset, split=self.dataset_split, columns=named, where=self.where)
        return FilesSource(paths=self.inputs or [], columns=named, where=self.where)

    def settings(self, model: str, source: FileSource) -> Settings:
        """The settings of the run that the model lies in, or defaults, with the options on top; says which."""
        from ensemw2s.config import LabelingConfig
        from ensemw2s.labeling.inputs import RENDERING, settings_for

        keys = {*RENDERING, *LabelingConfig.model_fields}
        given = {key: value for key, value in asdict(self).items() if key in keys}
        if self.answer_match not in (None, "exact", "numeric"):
            given["answer_match"] = {"kind": "regex", "pattern": self.answer_match}
        settings = settings_for(model, source, given)
        origin = "defaults (the model lies in no run's folder)"
        if settings.run is not None:
            origin = f"those of {remote.shown(settings.run / 'config.yaml')}"
        chat = ", chat template" if settings.data.chat_template else ""
        longest = settings.labeling.max_new_tokens
        say(f"settings: {origin} and options: prompt template {settings.data.prompt_template!r}{chat}, ", end="")
        say(f"at most {longest} tokens per answer")
        return settings

    @property
    def cluster(self) -> ClusterConfig:
        from ensemw2s.config import ClusterConfig

        return ClusterConfig(address=self.address, cpus=self.cpus)


@dataclass(frozen=True, kw_only=True)
class LabelOptions(SavedOptions):
    """What `label` is told."""

    ensemble: Annotated[Path, options.folder("--ensemble", "Folder with ensemble.json.")]
    output: Annotated[Path, options.folder("--output", "Folder for the labels: a new one, or one to continue.")]
    fresh: Annotated[
        bool, option("--fresh", "Delete labels in the folder that were made otherwise, and label again.")
    ] = False
    max_rejected: Annotated[
        int | None,
        option("--max-rejected", "Stop when more rows than this cannot be labelled. Default: never.", OUTPUT, min=0),
    ] = None
    min_agreement: Annotated[
        float | None, option("--min-agreement", "Keep labels with at least this agreement.", OUTPUT, min=0, max=1)
    ] = None
    min_consistency: Annotated[
        float | None,
        option("--min-consistency", "Keep labels that at least this share of samples gave.", OUTPUT, min=0, max=1),
    ] = None
    keep_fraction: Annotated[
        float | None,
        option("--keep-fraction", "Keep this share of the rest, by agreement.", OUTPUT, min=0.0001, max=1),
    ] = None
    samples: Annotated[
        int | None,
        option("--samples", "Answers sampled per prompt; the most frequent one is the label.", DECODING, min=1),
    ] = None
    temperature: Annotated[
        float | None, option("--temperature", "Of the sampling; 0 takes the likeliest token.", DECODING, min=0)
    ] = None
    top_p: Annotated[
        float | None,
        option("--top-p", "Sample from the likeliest tokens that together have this probability.", DECODING),
    ] = None
    seed: Annotated[int | None, option("--seed", "Seed of the sampling.", DECODING, min=0)] = None
    soft_top_k: Annotated[
        int | None,
        option("--soft-top-k", "Keep the probabilities of this many tokens at each position.", DECODING, min=0),
    ] = None
    chunk_size: Annotated[int | None, option("--chunk-size", "Prompts per output file.", DECODING, min=1)] = None

    @property
    def wanted(self) -> LabelFilter:
        from ensemw2s.config import LabelFilter

        given = {key: getattr(self, key) for key in LabelFilter.model_fields}
        return LabelFilter(**{key: value for key, value in given.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(SavedOptions):
    """What `evaluate` is told."""

    model: Annotated[str, option("--model", "Ensemble, model or adapters; or a hub id.", metavar="DIR")]
    json: Annotated[Path | None, options.file("--json", "Also write the figures to this file.")] = None
    answer_column: Annotated[
        str, option("--answer-column", "Column of the true answer, or a Jinja template.", INPUT, show_default=True)
    ] = "answer"
    choices_column: Annotated[
        str | None, option("--choices-column", "Column with the options of multiple-choice questions.", INPUT)
    ] = None
    max_answer_tokens: Annotated[
        int | None, option("--max-answer-tokens", "Longest true answer, in tokens.", DECODING, min=1)
    ] = None


@contextmanager
def as_options() -> Iterator[None]:
    """Around both commands: errors name options, where the same checks name keys of a config elsewhere."""
    try:
        yield
    except EnsemW2SError as error:
        said = re.sub(r"\bcolumns\.(prompt|answer|id|choices)\b", r"--\1-column", str(error))
        said = re.sub(r"^where '", "--where '", said)
        said = re.sub(r"^data path (.*?); correct it in paths of the source", r"--input \1", said)
        raise type(error)(said) from error


def label(given: LabelOptions, debug: options.Debug = False) -> None:
    """Label prompts with a saved ensemble.

    Reads rows with a prompt. A pool of actors decodes them, each with the whole ensemble. The output folder gets
    part-*.parquet, which other programs can read while it runs. A row has id, prompt, answer, token_ids, logprob (of
    the whole answer), agreement (share of the vote behind each token, averaged), vote_entropy, n_tokens, finish_reason
    (stop or length), token_agreement and token_entropy. summary.json has counts and histograms, labels.json what the
    labels were made from. Rows that cannot be labelled go to rejected/, with the reason. With a filter
    (--min-agreement, --min-consistency, --keep-fraction), the labels that pass go to kept/, too.

    The same command continues after a stop, and labels only what is missing. Labels of another ensemble, input or
    option are never mixed with these. Another filter or another number of actors does not label anything again.

    Prompts must look as they did in training. If the ensemble lies in a run's folder, the template and the settings of
    decoding come from that run's config.yaml. Otherwise give --prompt-template and --max-new-tokens.

        ensemw2s label --ensemble runs/quickstart/ensemble --input prompts.jsonl --output labels
        ensemw2s label --ensemble E --input s3://bucket/prompts --output s3://bucket/labels --min-agreement 0.8
    """
    with outcome(debug=debug, resumable=True), as_options():
        from ensemw2s.cluster.connect import check_lasting
        from ensemw2s.labeling import label_files
        from ensemw2s.progress import Progress

        settings = given.settings(str(given.ensemble), given.source())
        work = label_files.LabelWork(given.ensemble, given.output, settings, given.cluster, given.wanted)
        with before_work():
            check_lasting(given.output, "--output")
            waiting = label_files.prepare(work, fresh=given.fresh)
        if waiting:
            label_files.label(work, Progress(Output()), debug=debug)
        kept = label_files.keep(work)
        say(label_files.summary(given.output, kept) + ("" if waiting else "; nothing to do"))


def evaluate(given: EvaluateOptions, debug: options.Debug = False) -> None:
    """Evaluate a saved ensemble, expert or student on labelled examples.

    Reads rows with a prompt and its true answer. Prints the exact match of greedy answers with its 95 % bootstrap
    interval, and under teacher forcing the token accuracy and the negative log-likelihood per token. With
    --choices-column, it also prints how often the true option is the likeliest. Only the file of --json is written. On
    a cluster, the converted input lies beside it while the command runs, so that all nodes can read it.

    If the model lies in a run's folder, the template and the settings of decoding come from that run's config.yaml.

        ensemw2s evaluate --model runs/quickstart/ensemble --input test.jsonl
        ensemw2s evaluate --model runs/quickstart/students/student_ensemw2s --input test.jsonl --json student.json
    """
    with outcome(debug=debug), as_options():
        from ensemw2s.cluster.connect import check_lasting
        from ensemw2s.evaluation import saved
        from ensemw2s.progress import Progress

        source = given.source(answer=given.answer_column, choices=given.choices_column)
        settings, json = given.settings(given.model, source), given.json
        shared = None if json is None else json.absolute().parent
        work = saved.EvaluateWork(given.model, settings, given.cluster, shared)
        with before_work():
            if json is not None:
                check_lasting(json, "--json")
            if json is not None and not (remote.uri(json) or json.absolute().parent.is_dir()):
                raise ConfigError(f"--json {json}: there is no folder {json.absolute().parent}")
            voter = saved.prepare(work)
        found = saved.evaluate(work, voter, Progress(Output()), debug=debug)
        saved.print_figures(found, Output())
        if json is not None:
            json.parent.mkdir(parents=True, exist_ok=True)  # of a copy
            found.put_file(json)


def models(
    paths: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", show_default=False, help="Folders or hub ids.")
    ] = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """List the embedded models, or describe others.

    Without arguments: the tiny family, which a config names as tiny-weak and tiny-strong. A run pre-trains these
    itself, so a machine without a model hub can use them. With folders (models, LoRA adapters, ensembles) or hub ids:
    parameters, vocabulary, context, architecture, and a hash of the tokenizer. Models with the same hash can vote
    together.

        ensemw2s models
        ensemw2s models runs/quickstart/ensemble runs/quickstart/students/student_ensemw2s
    """
    with outcome(debug=debug):
        from ensemw2s.cli.models import as_json, embedded_as_json, facts, print_embedded, print_facts

        if not paths and json:
            say(embedded_as_json())
        elif not paths:
            print_embedded(Output())
        else:
            with before_work():
                found = [one for path in paths for one in facts(path)]
            if json:
                say(as_json(found))
            else:
                print_facts(found, Output())
