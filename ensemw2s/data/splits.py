"""Divides the examples of the sources into the five splits of a run, and keeps the hard labels apart.

Tables of examples flow in, a frozen `Splits` flows out: a pure function of the data config and a seed. Its own module
because what must never mix (train and test, hard prompts and their labels) is decided here and nowhere else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from ensemw2s.config import DataConfig, ReasoningGymSource, SplitSizes
from ensemw2s.data.dropped import Dropped, Tally
from ensemw2s.data.examples import content_key, derive_seed
from ensemw2s.data.sources import AnySource, RowCheck, allows_missing_answers, origin_of, read_source, shorten
from ensemw2s.errors import DataError

SPLITS = ("easy_train", "easy_validation", "id_test", "hard_unlabelled", "ood_test", "hard_validation")
EASY_SPLITS = SPLITS[:3]
HARD_SPLITS = ("ood_test", "hard_validation", "hard_unlabelled")
"""In the order in which they are filled: what is judged by needs answers, prompts to be labelled do not."""

Reference = Callable[[pa.Table], np.ndarray]
"""From a table of n examples to each one's loss under a model not trained on it, `[n]`, float64."""


@dataclass(frozen=True)
class Splits:
    """Six disjoint tables of `EXAMPLE_SCHEMA`, and the answers that only ceiling and evaluation may read.

    `hard_validation` is empty unless a search asks for it. `hard_unlabelled` has null answers. `hard_labels` (id,
    answer) has its rows in the same order; an answer is null where the source has none. `dropped` says which rows of
    the sources became no example.
    """

    easy_train: pa.Table
    easy_validation: pa.Table
    id_test: pa.Table
    hard_unlabelled: pa.Table
    ood_test: pa.Table
    hard_validation: pa.Table
    hard_labels: pa.Table
    dropped: Dropped = field(default_factory=Dropped)

    def tables(self) -> dict[str, pa.Table]:
        """The splits by name, in the order of `SPLITS`."""
        return {name: getattr(self, name) for name in SPLITS}


def make_splits(
    config: DataConfig, *, seed: int, reference: Reference | None = None, check: RowCheck | None = None
) -> Splits:
    """Reads the sources and divides their examples.

    Args:
        config: Sources, mode, sizes.
        seed: Of generated examples and of the shuffling; the same seed gives the same bytes.
        reference: Rates examples when `split.difficulty_from` is reference_loss; not called otherwise.
        check: Says which examples are dropped; raises what is wrong with one that may not be.

    Returns:
        The splits, disjoint by id and by content.

    Raises:
        DataError: A source cannot be used, or holds too few examples for a split.
    """
    sizes = config.sizes
    n_easy, n_hard = _total(sizes, EASY_SPLITS), _total(sizes, HARD_SPLITS)
    tally = Tally()
    if config.split.mode == "random":
        easy, hard = _random_pools(config, seed, n_easy, n_hard, tally, check)
    elif config.split.mode == "cross_source" or config.split.difficulty_from == "source":
        easy, hard = _source_pools(config, seed, n_easy, n_hard, tally, check)
    else:
        easy, hard = _rated_pools(config, seed, n_easy, n_hard, reference, tally, check)
    dropped = tally.record()
    _check_answers(easy, hard, config)
    _check_sizes(easy, hard, config, dropped)
    splits = replace(_divide(_shuffle(easy, seed), _shuffle(hard, seed), sizes), dropped=dropped)
    check_disjoint(splits)
    return splits


def check_disjoint(splits: Splits) -> None:
    """Raises `DataError` when an id or a content key is in two splits, or twice in one."""
    ids: dict[str, str] = {}
    keys: dict[str, tuple[str, str]] = {}
    for name, table in splits.tables().items():
        for identity, prompt in zip(table["id"].to_pylist(), table["prompt"].to_pylist(), strict=True):
            if identity in ids:
                raise DataError(
                    f"id {identity} is in {ids[identity]} and in {name}; ids must be unique over all splits"
                )
            ids[identity] = name
            key = content_key(prompt)
            if key in keys:
                other, where = keys[key]
                raise DataError(
                    f"examples {other} in {where} and {identity} in {name} have the same prompt up to white "
                    f"space: {shorten(prompt)!r}; splits must be disjoint by content"
                )
            keys[key] = (identity, name)


def folds(n: int, k: int, seed: int) -> np.ndarray:
    """Assigns n examples to k folds at random, with sizes that differ by at most one.

    Args:
        n: Number of examples, at least k.
        k: Number of folds.
        seed: Of the permutation.

    Returns:
        `[n]`, int64: the fold (0 … k-1) of each example.

    Raises:
        DataError: Fewer examples than folds.
    """
    if n < k:
        raise DataError(f"{n} examples cannot be divided into {k} folds; lower data.split.reference.folds")
    assignment = np.empty(n, dtype=np.int64)
    assignment[np.random.default_rng(derive_seed(seed, "folds")).permutation(n)] = np.arange(n) % k
    return assignment


def _random_pools(
    config: DataConfig, seed: int, n_easy: int, n_hard: int, tally: Tally, check: RowCheck | None
) -> tuple[pa.Table, pa.Table]:
    total = n_easy + n_hard
    read = read_source(config.source, seed=seed, n_easy=total - total // 2, n_hard=total // 2, tally=tally, check=check)
    table = _shuffle(read, seed)
    return table.slice(0, n_easy), table.slice(n_easy)


def _source_pools(
    config: DataConfig, seed: int, n_easy: int, n_hard: int, tally: Tally, check: RowCheck | None
) -> tuple[pa.Table, pa.Table]:
    """Easy ones from one source (or config), hard ones from another; content of both counts as easy."""
    easy = read_source(config.source, seed=seed, n_easy=n_easy, n_hard=0, tally=tally, check=check)
    source: AnySource = config.hard_source or config.source
    known = {content_key(prompt) for prompt in easy["prompt"].to_pylist()}
    optional = allows_missing_answers(config, source)
    hard = read_source(
        source,
        seed=seed,
        n_easy=0,
        n_hard=n_hard,
        exclude=known,
        taken=easy["id"].to_pylist() if source.columns.id is None else (),
        answer_optional=optional,
        tally=tally,
        check=check,
    )
    if source.columns.difficulty is None:
        hard = _with_difficulty(hard, np.ones(hard.num_rows))
    prompts = [dict(zip(table["id"].to_pylist(), table["prompt"].to_pylist(), strict=True)) for table in (easy, hard)]
    if shared := set(prompts[0]) & set(prompts[1]):
        first = min(shared)
        rows = ", ".join(origin_of(config, of[first]) or shorten(of[first]) for of in prompts)
        raise DataError(
            f"easy and hard examples have {len(shared)} ids in common, {first} for one ({rows}); make them differ, "
            'with hard_source.columns.id "hard-{{ id }}" for example, or leave columns.id out'
        )
    return easy, hard


def _rated_pools(
    config: DataConfig,
    seed: int,
    n_easy: int,
    n_hard: int,
    reference: Reference | None,
    tally: Tally,
    check: RowCheck | None,
) -> tuple[pa.Table, pa.Table]:
    """Easy and hard by a threshold on the difficulty.

    A generator is asked for more examples, up to eight times as many, until both sides have enough; rating by a
    reference model is too expensive for that.
    """
    grows = isinstance(config.source, ReasoningGymSource) and config.split.difficulty_from != "reference_loss"
    most = max(n_easy, n_hard)
    pools: tuple[pa.Table, pa.Table] | None = None
    for factor in (1, 2, 4, 8) if grows else (1,):
        tally.counts.clear()
        try:
            table = read_source(
                config.source,
                seed=seed,
                n_easy=factor * most,
                n_hard=factor * most,
                answer_optional=allows_missing_answers(config, config.source),
                tally=tally,
                check=check,
            )
        except DataError:
            if pools is None:
                raise
            break  # the generator has no more; the check of sizes says what is missing
        table = _rate(table, config, reference)
        difficulty = table["difficulty"].to_numpy()
        if table.num_rows == 0:
            raise DataError("the source holds no rows")
        is_easy = difficulty <= _threshold(config, difficulty)
        pools = table.filter(pa.array(is_easy)), table.filter(pa.array(~is_easy))
        if pools[0].num_rows >= n_easy and pools[1].num_rows >= n_hard:
            break
    assert pools is not None
    return pools


def _rate(table: pa.Table, config: DataConfig, reference: Reference | None) -> pa.Table:
    """The table with the difficulty that the config asks for."""
    if config.split.difficulty_from == "answer_length":
        return _with_difficulty(table, np.array([len(answer) for answer in table["answer"].to_pylist()], np.float64))
    if config.split.difficulty_from == "reference_loss":
        assert reference is not None, "difficulty_from reference_loss needs the callable that rates examples"
        losses = np.asarray(reference(table), dtype=np.float64)
        assert losses.shape == (table.num_rows,), f"{losses.shape} losses for {table.num_rows} examples"
        if bad := int((~np.isfinite(losses)).sum()):
            raise DataError(
                f"the reference model's loss is not finite for {bad} of {table.num_rows} examples; lower "
                "data.split.reference.learning_rate"
            )
        return _with_difficulty(table, losses)
    return table


def _threshold(config: DataConfig, difficulty: np.ndarray) -> float:
    return float(np.median(difficulty)) if config.split.easy_max is None else config.split.easy_max


def _with_difficulty(table: pa.Table, difficulty: np.ndarray) -> pa.Table:
    index = table.schema.get_field_index("difficulty")
    return table.set_column(index, table.schema.field(index), pa.array(difficulty, pa.float64()))


def _total(sizes: SplitSizes, names: tuple[str, ...]) -> int:
    return sum(getattr(sizes, name) for name in names)


def _check_answers(easy: pa.Table, hard: pa.Table, config: DataConfig) -> None:
    """Raises `DataError` when an example of a labelled split has no answer."""
    if easy["answer"].null_count:
        row = easy.filter(easy["answer"].is_null()).slice(0, 1).to_pylist()[0]
        missing = easy["answer"].null_count
        more = f" ({missing} easy ones do)" if missing > 1 else ""
        where = origin_of(config, row["prompt"]) or f"example {row['id']}"
        raise DataError(
            f"{where}: {shorten(row['prompt'])!r} is easy (difficulty {row['difficulty']:g}) and has no answer; only "
            f"hard examples may lack one{more}"
        )
    answered = hard.num_rows - hard["answer"].null_count
    wanted = _total(config.sizes, HARD_SPLITS[:2])
    if answered < wanted <= hard.num_rows:
        names = [name for name in HARD_SPLITS[:2] if getattr(config.sizes, name)]
        asked = " + ".join(f"data.sizes.{name} {getattr(config.sizes, name)}" for name in names)
        raise DataError(
            f"there are {answered} hard examples with an answer, {wanted} are wanted ({asked}): lower "
            "it, or give more of the hard rows an answer, by hand if need be; it judges models and trains none"
        )


def _check_sizes(easy: pa.Table, hard: pa.Table, config: DataConfig, dropped: Dropped) -> None:
    """Raises `DataError` when a pool is too small, saying by how much and what can be changed."""
    for side, table, names in (("easy", easy, EASY_SPLITS), ("hard", hard, HARD_SPLITS)):
        wanted = _total(config.sizes, names)
        if table.num_rows >= wanted:
            continue
        count = f"only {table.num_rows}" if table.num_rows else "no"
        asked = " + ".join(f"data.sizes.{n} {size}" for n in names if (size := getattr(config.sizes, n)))
        remedy = "lower these sizes or give more data"
        both = np.concatenate([pool["difficulty"].to_numpy() for pool in (easy, hard)])
        if config.split.mode == "difficulty" and both.size:
            boundary = "the median" if config.split.easy_max is None else f"{config.split.easy_max:g}"
            remedy += (
                f", or move data.split.easy_max ({boundary}; at most that is easy, and difficulties go from "
                f"{both.min():g} to {both.max():g})"
            )
        lost = " ".join(["", *dropped.sentences()])
        raise DataError(f"there are {count} distinct {side} examples, {wanted} are wanted ({asked}): {remedy}.{lost}")


def _shuffle(table: pa.Table, seed: int) -> pa.Table:
    """Orders rows by a hash of seed and id: no library's random generator, and no order of files, decides."""
    keys = [hashlib.sha256(f"{seed}:{identity}".encode()).digest() for identity in table["id"].to_pylist()]
    return table.take(pa.array(sorted(range(len(keys)), key=keys.__getitem__), pa.int64())).combine_chunks()


def _divide(easy: pa.Table, hard: pa.Table, sizes: SplitSizes) -> Splits:
    parts: dict[str, pa.Table] = {}
    start = 0
    for name in EASY_SPLITS:
        parts[name] = easy.slice(start, getattr(sizes, name))
        start += getattr(sizes, name)
    answered = np.flatnonzero(np.asarray(hard["answer"].is_valid()))
    labelled = np.zeros(hard.num_rows, dtype=bool)
    start = 0
    for name in HARD_SPLITS[:2]:
        rows = answered[start : start + getattr(sizes, name)]
        parts[name] = hard.take(pa.array(rows, pa.int64()))
        labelled[rows] = True
        start += getattr(sizes, name)
    prompts = hard.filter(pa.array(~labelled)).slice(0, sizes.hard_unlabelled)
    index = prompts.schema.get_field_index("answer")
    nothing = pa.nulls(prompts.num_rows, pa.string())
    parts["hard_unlabelled"] = prompts.set_column(index, prompts.schema.field(index), nothing)
    parts["hard_labels"] = prompts.select(["id", "answer"])
    return Splits(**{name: table.combine_chunks() for name, table in parts.items()})
