"""One pass over all rows before Ray starts: a config goes in, and what makes a row unusable later is raised.

Rows are read and divided as the run does it, with every tokenizer that will read them. So `plan` and `run` refuse the
same rows with the same words. What was scanned is remembered by the hashes of the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ensemw2s.config import Config, ReasoningGymSource
from ensemw2s.config.systems import STUDENT_CEILING
from ensemw2s.data.limits import RowReader, RunCheck
from ensemw2s.data.rows import Fields
from ensemw2s.data.sources import check_first, origin_of, sources_identity
from ensemw2s.data.splits import SPLITS, make_splits
from ensemw2s.data.tokens import TokenData, check_answers_fit, tokenize_examples
from ensemw2s.errors import ArtifactError, DataError, ExampleError
from ensemw2s.models import tiny
from ensemw2s.models.hub import is_here
from ensemw2s.models.info import model_info
from ensemw2s.models.tokenizers import load_tokenizer, tokenizer_hash
from ensemw2s.pipeline.foundations import Foundations, cache_of
from ensemw2s.storage import remote, store
from ensemw2s.storage.record import Record
from ensemw2s.storage.store import read_table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS = 100_000
"""Rows that are read at most: about a minute for each tokenizer."""

GENERATED = 100
"""Rows of each part that a generator makes for the scan."""

TOKENIZER = "tokenizer"
"""Folder in the stage `corpus` of the tokenizer that is trained for the embedded models."""


class Scan(Record):
    """How far the rows were read before a run.

    Attributes:
        rows: Rows that were read.
        whole: Whether these were all, and enough for every split.
    """

    rows: int
    whole: bool

    def words(self) -> str:
        """In a sentence."""
        if self.whole:
            return f"all {self.rows} rows can be used"
        return f"the first {self.rows} rows can be used; the others are checked when the run reads them"


_scanned: dict[Path, Scan] = {}
"""What this process has scanned, by the file that remembers it. Cells of a study share their data."""


def check_rows(config: Config) -> Scan:
    """Reads all rows, unless these files passed before.

    Raises:
        DataError: Rows cannot be used, there are too few of them, or one is too long for a model; names the row.
        ModelError: A model is damaged.
    """
    made = Foundations(config, None)
    check = run_check(config, _trained(made))
    file = _file(made, check)
    if file not in _scanned:
        _scanned[file] = _remembered(file) or _scan(made, check)
    return _scanned[file]


def check_trained(config: Config, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """The pass with the tokenizer of the embedded models, right after it is trained.

    Args:
        config: The config.
        tokenizer: The tokenizer.
        folder: Of the splits.

    Raises:
        DataError: Names the split and the first example that is too long.
    """
    made = Foundations(config, None)
    check = run_check(config, tokenizer)
    tables = _tables(folder, config)
    check_splits(config, check, tables)
    _scanned[_file(made, check)] = Scan(rows=sum(table.num_rows for table in tables.values()), whole=True)
    remember(config)


def remember(config: Config) -> None:
    """Leaves in the storage what this process has scanned, so that the next command need not read these rows again."""
    cache = cache_of(config)
    for file, scan in _scanned.items():
        if file.is_relative_to(cache) and not remote.exists(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            scan.put_file(file)


def run_check(config: Config, trained: PreTrainedTokenizerBase | None = None) -> RunCheck:
    """Checks rows against the tokenizers and contexts of all models of a run, but those that are not here yet.

    Args:
        config: The config.
        trained: The tokenizer of the embedded models, if it is trained.

    Raises:
        ModelError: A model is damaged.
    """
    readers: dict[object, RowReader] = {}
    for model in (*config.models.weak, config.models.strong):
        context: int | None
        if model.is_tiny:
            name, context, tokenizer = model.base, tiny.CONTEXT, trained
        elif is_here(model.base, model.revision):
            name, context = model.base, model_info(model.base, model.revision).context
            tokenizer = load_tokenizer(model.base, model.revision)
        else:
            continue
        key = None if tokenizer is None else tokenizer_hash(tokenizer)
        known = readers.get(key)
        if known is None or (known.context or np.inf) > (context or np.inf):
            readers[key] = RowReader(name, tokenizer, context)  # of those that read alike, the one that takes least
    return RunCheck(tuple(readers.values()), config.data)


def _trained(made: Foundations) -> PreTrainedTokenizerBase | None:
    """The tokenizer of the embedded models, if an earlier run has trained it."""
    if made.corpus is None:
        return None
    stage = made.corpus.stage
    return load_tokenizer(stage.path / TOKENIZER) if store.is_done(stage.path, stage.description) else None


def check_splits(config: Config, check: RunCheck, tables: Mapping[str, pa.Table], *, tokenized: bool = False) -> None:
    """Checks that every model can take the examples of splits that are made.

    Args:
        config: The config.
        check: Who reads them.
        tables: The splits by name.
        tokenized: Easy examples are tokens already: nobody asks again whether labels can be as long.

    Raises:
        DataError: Names the split, the model and the first example that is too long.
    """
    for reader in check.readers:
        if reader.tokenizer is None:
            continue
        for name, table in tables.items():
            try:
                read = tokenize_examples(table, reader.tokenizer, config.data)
                _check_context(TokenData.from_table(read), reader)
            except DataError as error:
                raise DataError(f"{name}, read by {reader.name}: {_with_row(error, table, config)}") from None
    if not tokenized:
        _check_labels_fit(config, check, tables)


def _check_context(tokens: TokenData, reader: RowReader) -> None:
    both = zip(tokens.prompt_ids, tokens.answer_ids, strict=True)
    lengths = np.array([len(prompt) + len(answer) for prompt, answer in both], np.int64)
    if reader.context is not None and lengths.size and lengths.max() > reader.context:
        longest = int(lengths.argmax())
        raise ExampleError(
            f"prompt and answer of example {tokens.ids[longest]} have {lengths[longest]} tokens, {reader.name} takes "
            f"{reader.context}; {int((lengths > reader.context).sum())} of {len(tokens)} are too long: drop them, or "
            "take a model with a longer context",
            tokens.ids[longest],
        )


def _check_labels_fit(config: Config, check: RunCheck, tables: Mapping[str, pa.Table]) -> None:
    """Checks that the weak models' labels can be as long as easy answers."""
    tokenizer = check.readers[0].tokenizer if check.readers else None
    if tokenizer is not None:
        for name in ("easy_train", "easy_validation"):
            read = tokenize_examples(tables[name], tokenizer, config.data)
            try:
                check_answers_fit(read, config.labeling.max_new_tokens)
            except ExampleError as error:
                raise DataError(_with_row(error, tables[name], config)) from None


def _with_row(error: DataError, table: pa.Table, config: Config) -> str:
    """An error's message, with the file and the row that its example comes from."""
    if not isinstance(error, ExampleError):
        return str(error)
    [prompt] = table.filter(pc.equal(table["id"], error.example))["prompt"].to_pylist()
    origin = origin_of(config.data, prompt)
    return str(error) if origin is None else f"{origin}: {error}"


def _file(made: Foundations, check: RunCheck) -> Path:
    """The file that remembers a scan of these rows by these readers."""
    config = made.config
    readers = [
        [None if reader.tokenizer is None else tokenizer_hash(reader.tokenizer), reader.context]
        for reader in check.readers
    ]
    decides = [
        sources_identity(config.data),
        config.data.model_dump(mode="json"),
        readers,
        config.labeling.max_new_tokens,
        STUDENT_CEILING in config.evaluation.systems,
    ]
    return made.cache / "scanned" / f"{store.fingerprint_of(decides)[:16]}.json"


def _remembered(file: Path) -> Scan | None:
    try:
        return Scan.read_file(remote.pull(file)) if remote.exists(file) else None
    except ArtifactError:
        return None


def _scan(made: Foundations, check: RunCheck) -> Scan:
    config, folder = made.config, made.data.path
    try:
        done = store.is_done(folder, made.data.description)
    except ArtifactError:  # said later, with what to do
        done = False
    if not done:
        return _scan_sources(config, check)
    tables = _tables(folder, config)
    if not remote.exists(made.root / "evaluation" / store.MARKER):  # else the run needs them no more
        check_splits(config, check, tables, tokenized=remote.exists(made.tokens.path / store.MARKER))
    return Scan(rows=sum(table.num_rows for table in tables.values()), whole=True)


def _tables(folder: Path, config: Config) -> dict[str, pa.Table]:
    """The splits in a folder; hard prompts with their answers, if a model learns from these."""
    tables = {name: read_table(folder / f"{name}.parquet") for name in SPLITS}
    if STUDENT_CEILING in config.evaluation.systems:
        hard, answers = tables["hard_unlabelled"], read_table(folder / "hard_labels.parquet")["answer"]
        tables["hard_unlabelled"] = hard.set_column(hard.schema.get_field_index("answer"), "answer", answers)
    return tables


class _Enough(Exception):
    """As many rows are read as the scan reads at most."""


@dataclass
class _Counting:
    """A `RowCheck` that counts the rows it is shown, and ends the reading after `ROWS`."""

    check: RunCheck
    rows: int = 0

    def __call__(self, origin: str, example: Fields) -> str | None:
        if self.rows == ROWS:
            raise _Enough
        self.rows += 1
        return self.check(origin, example)


def _scan_sources(config: Config, check: RunCheck) -> Scan:
    """Divides the rows as the run will; where that cannot be known or takes too long, looks at the first rows."""
    data, counting = config.data, _Counting(check)
    generates = any(isinstance(source, ReasoningGymSource) for source in (data.source, data.hard_source))
    rated = data.split.difficulty_from == "reference_loss"
    cut = False
    if not generates and not (rated and data.split.easy_max is not None):
        try:
            splits = make_splits(data, seed=config.seed, reference=_places, check=counting)
            _check_labels_fit(config, check, splits.tables())
            return Scan(rows=counting.rows, whole=True)
        except _Enough:
            cut = True
    if not cut or data.hard_source is not None:
        counting.rows += check_first(data, seed=config.seed, most=ROWS, generated=GENERATED, check=check, only_hard=cut)
    return Scan(rows=counting.rows, whole=False)


def _places(table: pa.Table) -> np.ndarray:
    """Stands for the losses of a reference model, of which only their number decides whether the rows are enough."""
    return np.arange(table.num_rows, dtype=np.float64)
