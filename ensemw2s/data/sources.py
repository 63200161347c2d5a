"""Reads a configured source into a table of distinct examples, and checks a source before anything expensive starts.

Raw rows flow in from `readers`, are mapped by `columns`, and leave as a table of `EXAMPLE_SCHEMA` without duplicates.
Its own module because this is the same for every kind of source.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import pyarrow as pa

from ensemw2s.config import DataConfig, FilesSource, HuggingFaceSource, ReasoningGymSource
from ensemw2s.data.columns import answer_text, question_key, render_row
from ensemw2s.data.dropped import Tally
from ensemw2s.data.examples import content_key, example_id, example_table
from ensemw2s.data.readers import WhereReader, make_reader
from ensemw2s.data.rows import Fields, OriginRow, Part, Row
from ensemw2s.errors import DataError

RowCheck = Callable[[str, Fields], str | None]
"""From where an example comes and the example to why it is dropped, `too_long` or `unreadable`; None: it is not."""

AnySource = ReasoningGymSource | FilesSource | HuggingFaceSource

MISTAKES = 5
"""Rows that cannot be used, after which no more are read."""

PARTS: tuple[Part, Part] = ("easy", "hard")
SIZE_KEYS: dict[Part, tuple[str, ...]] = {
    "easy": ("data.sizes.easy_train", "data.sizes.easy_validation", "data.sizes.id_test"),
    "hard": ("data.sizes.hard_unlabelled", "data.sizes.ood_test", "data.sizes.hard_validation"),
}


def iterate_rows(source: AnySource, *, part: Part, seed: int) -> Iterator[Row]:
    """The raw rows of a source, one dictionary each, for `render_row` or templates of your own.

    Args:
        source: Where the rows come from.
        part: Whose config generates the rows of a reasoning_gym source, which never end. Other sources yield all their
            rows once, whatever the part.
        seed: Of the generated rows; equal seeds give equal rows. Other sources do not read it.

    Raises:
        DataError: The source cannot be read.
    """
    for _, row in make_reader(source).rows(part, seed):
        yield row


def read_source(
    source: AnySource,
    *,
    seed: int,
    n_easy: int,
    n_hard: int,
    exclude: Iterable[str] = (),
    taken: Iterable[str] = (),
    answer_optional: bool = False,
    tally: Tally | None = None,
    check: RowCheck | None = None,
) -> pa.Table:
    """Reads or generates examples, no two of them with the same content.

    Rows whose prompt has the content key of an earlier one are dropped, whatever their answer.

    Args:
        source: Where the examples come from.
        seed: Of generated examples.
        n_easy: How many to generate with the easy config of a reasoning_gym source (difficulty 0 unless a column
            gives it). Other sources are read whole, with difficulty 0 where no column gives it.
        n_hard: How many to generate with the hard config (difficulty 1); none of them repeats an easy one.
        exclude: Content keys that must not occur.
        taken: Ids that others have; no id that is made here is one of them.
        answer_optional: Keep rows that have no answer, with null; else they are an error.
        tally: Counts the rows that are dropped, but not those of a generator, which has no end of them.
        check: Says which examples are dropped; raises what is wrong with one that may not be.

    Returns:
        Table of `EXAMPLE_SCHEMA`, in the source's order, easy before hard.

    Raises:
        DataError: A row cannot be used, an id occurs twice, or there are fewer distinct examples than asked for.
    """
    seen = _Known(dict.fromkeys(exclude), set(taken), check=check)
    reader = make_reader(source, seen.refuse)
    with seen.telling_all():
        if isinstance(source, ReasoningGymSource):
            examples = []
            for part, n in zip(PARTS, (n_easy, n_hard), strict=True):
                fresh = _distinct(source, reader.rows(part, seed), seen, float(part == "hard"), answer_optional)
                examples += _draw(fresh, n, f"reasoning_gym {source.dataset}", part)
        else:
            seen.tally = tally
            fresh = _distinct(source, reader.rows("easy", seed), seen, 0.0, answer_optional)
            examples = [example for example in fresh if example is not None]
            if tally is not None and isinstance(reader, WhereReader) and reader.unmatched:
                tally.add("unmatched", reader.unmatched)
        _check_ids(examples, seen)
    return example_table(examples)


@dataclass
class _Known:
    """What there was already.

    Attributes:
        keys: Content key → origin and answer of its first row, None where it is another source's.
        ids: Ids.
        tally: Counts rows that repeat one, or are dropped by `check`.
        check: As in `read_source`.
        mistakes: What is wrong with rows that cannot be used.
    """

    keys: dict[str, tuple[str, str | None] | None] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)
    tally: Tally | None = None
    check: RowCheck | None = None
    mistakes: list[str] = field(default_factory=list)

    def refuse(self, mistake: DataError) -> None:
        """Notes a row that cannot be used; raises when there are `MISTAKES` of them."""
        self.mistakes.append(str(mistake))
        if len(self.mistakes) == MISTAKES:
            raise DataError(f"the first {MISTAKES} rows that cannot be used:" + _listed(self.mistakes))

    @contextmanager
    def telling_all(self) -> Iterator[None]:
        """Around the reading of rows: raises what was noted, together with what stops the reading."""
        try:
            yield
        except DataError as error:
            if not self.mistakes or len(self.mistakes) == MISTAKES:
                raise
            self.mistakes.append(str(error))
        if len(self.mistakes) == 1:
            raise DataError(self.mistakes[0])
        if self.mistakes:
            raise DataError(f"{len(self.mistakes)} rows cannot be used:" + _listed(self.mistakes))


def _listed(mistakes: list[str]) -> str:
    return "".join(f"\n  {mistake}" for mistake in mistakes)


def _distinct(
    source: AnySource, rows: Iterator[OriginRow], seen: _Known, difficulty: float, answer_optional: bool
) -> Iterator[Fields | None]:
    """Examples of new content, and None for each row that is none; `seen` grows by them."""
    for origin, row in rows:
        try:
            yield _example(source, origin, row, seen, difficulty, answer_optional)
        except DataError as mistake:
            seen.refuse(mistake)
            yield None


def _example(
    source: AnySource, origin: str, row: Row, seen: _Known, difficulty: float, answer_optional: bool
) -> Fields | None:
    """The example that a row makes; None for one that repeats another or is dropped."""
    example = render_row(source.columns, row, origin=origin, answer_optional=answer_optional)
    key = content_key(example["prompt"])
    keys = [key] if (other := question_key(source.columns, row)) is None else [key, other]
    if (known := next((one for one in keys if one in seen.keys), None)) is not None:
        if seen.tally is not None:
            first = seen.keys[known] or ("an easy row", example["answer"])
            seen.tally.repeat(origin, example["answer"], first if known == key else (first[0], example["answer"]))
        return None
    if seen.check is not None and (why := seen.check(origin, example)) is not None:
        if seen.tally is not None:
            seen.tally.add(why)
        return None
    seen.keys |= dict.fromkeys(keys, (origin, example["answer"]))
    if example["id"] is None:
        example["id"] = made = example_id(example["prompt"], seen.ids)
        seen.ids.add(made)
    if example["difficulty"] is None:
        if source.columns.difficulty is not None:
            raise DataError(f"{origin}: the difficulty (columns.difficulty {source.columns.difficulty!r}) is null")
        example["difficulty"] = difficulty
    return example


def _draw(examples: Iterator[Fields | None], n: int, name: str, part: Part) -> list[Fields]:
    """The first n examples of an endless stream in which None stands for a repetition."""
    found: list[Fields] = []
    drawn = last = 0
    while len(found) < n:
        example = next(examples)
        drawn += 1
        if example is not None:
            found.append(example)
            last = drawn
        # After ten times as many draws as there are distinct ones, one that is still missing has a chance of e^-10.
        elif drawn - last > max(1000, 10 * len(found)):
            raise DataError(
                f"{name} gives only {len(found)} distinct {part} prompts ({drawn} drawn), {n} are wanted: give its "
                f"{part} config more room, or lower {' or '.join(SIZE_KEYS[part])}"
            )
    return found


def _check_ids(examples: list[Fields], seen: _Known) -> None:
    first: dict[str, str] = {}
    for example in examples:
        identity, prompt = str(example["id"]), example["prompt"]
        if identity in first:
            seen.refuse(
                DataError(
                    f"id {identity} belongs to two examples, {_shown(first[identity], seen)} and "
                    f"{_shown(prompt, seen)}: ids must be unique; name another column or a template in columns.id, or "
                    "leave it out"
                )
            )
        first[identity] = prompt


def _shown(prompt: str, seen: _Known) -> str:
    """A prompt's beginning and its row."""
    place = seen.keys.get(content_key(prompt))
    return repr(shorten(prompt)) + (f" ({place[0]})" if place is not None else "")


def shorten(text: str, width: int = 60) -> str:
    """The beginning of a text, for error messages."""
    return text if len(text) <= width else text[: width - 1] + "…"


def origin_of(config: DataConfig, prompt: str) -> str | None:
    """The first row with a prompt, as messages name it. Reads the sources again, so that only mistakes cost time.

    Args:
        config: Sources and columns.
        prompt: The prompt of an example.

    Returns:
        File and row; None if no row has this prompt, a source cannot be read, or a generator makes the rows.
    """
    key = content_key(prompt)
    for source, _ in _parts(config):
        if isinstance(source, ReasoningGymSource):
            continue
        with suppress(DataError):
            for origin, row in make_reader(source, lambda mistake: None).rows("easy", 0):
                with suppress(DataError):
                    if content_key(render_row(source.columns, row, answer_optional=True)["prompt"]) == key:
                        return origin
    return None


def check_source(config: DataConfig) -> pa.Table:
    """Finds what is wrong with the configured sources at the cost of a few rows; the pipeline calls it before Ray.

    Returns:
        The examples that the looked-at rows make, as a preview: one for each part or file.

    Raises:
        DataError: An unknown reasoning_gym data set or setting, a path that cannot be read, a column that is missing,
            a template that fails, a value that cannot be used, or a source without rows.
    """
    examples: list[Fields] = []
    for source, parts in _parts(config):
        optional = allows_missing_answers(config, source)
        reader = make_reader(source)
        sampled = 0
        for part in parts:
            rows = list(reader.sample(part))
            if optional and source is not config.hard_source:
                _check_answers(source, rows)
            seen = _Known()
            with seen.telling_all():
                for example in _distinct(source, iter(rows), seen, float(part == "hard"), optional):
                    sampled += 1
                    if example is not None:
                        examples.append(example)
        if sampled == 0:
            raise DataError(f"the {source.kind} source holds no rows: {_where(source)}")
    return example_table(examples)


def check_first(
    config: DataConfig, *, seed: int, most: int, generated: int, check: RowCheck, only_hard: bool = False
) -> int:
    """Checks the first rows of the configured sources, where not all can be read before a run.

    Args:
        config: Sources and columns.
        seed: Of generated rows.
        most: Rows of a source that are read at most.
        generated: Rows of each part that a generator makes.
        check: As in `read_source`.
        only_hard: The hard source only.

    Returns:
        How many rows were read.

    Raises:
        DataError: Rows cannot be used.
    """
    read = 0
    for source, parts in _parts(config):
        if only_hard and source is not config.hard_source:
            continue
        optional, seen = allows_missing_answers(config, source), _Known(check=check)
        n = generated if isinstance(source, ReasoningGymSource) else most
        with seen.telling_all():
            for part in parts:
                rows = itertools.islice(make_reader(source, seen.refuse).rows(part, seed), n)
                read += sum(1 for _ in _distinct(source, rows, seen, float(part == "hard"), optional))
    return read


def _parts(config: DataConfig) -> list[tuple[AnySource, tuple[Part, ...]]]:
    """The sources with the parts that are read of each."""
    if config.hard_source is not None:
        return [(config.source, ("easy",)), (config.hard_source, ("hard",))]
    return [(config.source, PARTS if isinstance(config.source, ReasoningGymSource) else ("easy",))]


def _check_answers(source: AnySource, rows: list[OriginRow]) -> None:
    """Raises the error of a missing answer column where no row has it: some rows are easy, and these need answers."""
    errors = []
    for origin, row in rows:
        try:
            answer_text(source.columns, row, origin=origin)
            return
        except DataError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def allows_missing_answers(config: DataConfig, source: AnySource) -> bool:
    """Whether rows of `source` may lack an answer: where it is known, unread, that they are hard or can be."""
    if config.split.mode == "cross_source":
        return source is config.hard_source
    return config.split.mode == "difficulty" and config.split.difficulty_from == "column"


def sources_identity(config: DataConfig) -> dict[str, dict[str, object]]:
    """What the configured sources hold at the moment, as plain values for a fingerprint.

    Returns:
        By `source` (and `hard_source`, if there is one): path, size and SHA-256 of every local file; the version of
        reasoning-gym; revision and fingerprint of a data set from the Hugging Face hub.

    Raises:
        DataError: A source cannot be read.
    """
    identity = {"source": make_reader(config.source).identity()}
    if config.hard_source is not None:
        identity["hard_source"] = make_reader(config.hard_source).identity()
    return identity


def _where(source: AnySource) -> str:
    if isinstance(source, FilesSource):
        return ", ".join(source.paths)
    return source.dataset if isinstance(source, ReasoningGymSource) else f"{source.path} [{source.split}]"
