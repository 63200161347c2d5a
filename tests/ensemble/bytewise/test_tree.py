"""The tree against brute force: every way to cover a text with tokens, summed one by one."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from ensemw2s.ensemble.bytewise.tree import Tree, advance
from ensemw2s.ensemble.bytewise.vocabulary import END, ByteTable, token_bytes
from ensemw2s.errors import DataError

TINY = [None, None, b"a", b"b", b"ab", b"aba", b"ba", b"b", b" ", b" a", b"b a", b"\xc3", b"\xa9", b"\xc3\xa9"]
STOP = 1
PIECES = ["the", " cat", "12", "🙂", "é", "e\u0301", "אב", "\r\n", "  ", "\n", "x", "\u200d", "ab"]


def covered(rows: Any, tokens: Sequence[bytes | None], ids: list[int], text: bytes) -> float:
    """P(text | ids): the sum over all tokens that begin it, and over all that may follow each; nothing is pruned."""
    if not text:
        return 1.0
    total = 0.0
    for token, probability in enumerate(rows.next(ids)):
        spelled = tokens[token]
        if spelled is None:
            continue
        if spelled.startswith(text):
            total += float(probability)
        elif text.startswith(spelled):
            total += float(probability) * covered(rows, tokens, [*ids, token], text[len(spelled) :])
    return total


def ended(rows: Any, tokens: Sequence[bytes | None], ids: list[int], text: bytes) -> float:
    """P(text, then a stop token | ids)."""
    if not text:
        return float(rows.next(ids)[STOP])
    total = 0.0
    for token, probability in enumerate(rows.next(ids)):
        spelled = tokens[token]
        if spelled is not None and text.startswith(spelled):
            total += float(probability) * ended(rows, tokens, [*ids, token], text[len(spelled) :])
    return total


def tree_of(rows: Any, tokens: Sequence[bytes | None], **settings: Any) -> Tree:
    tree = Tree(ByteTable(tokens), [STOP], **settings)
    tree.begin(rows, [0])
    return tree


@pytest.mark.parametrize("text", ["abab", "ba b ab", "é", "abéab a", " a a", "aaaa", "b a b a b"])
@pytest.mark.parametrize("seed", [0, 1])
def test_without_epsilon_a_texts_probability_is_the_sum_over_all_coverings(
    table_rows: Any, text: str, seed: int
) -> None:
    rows = table_rows(len(TINY), seed)
    tree = tree_of(rows, TINY, epsilon=0.0, most=10**6)
    for length, byte in enumerate(text.encode()):
        begun = text.encode()[:length]
        before = covered(rows, TINY, [0], begun)
        masses = tree.masses()
        for symbol in (*b"ab \xc3\xa9", 0x7A):
            wanted = covered(rows, TINY, [0], begun + bytes([symbol])) / before
            assert masses[symbol] == pytest.approx(wanted, rel=1e-9, abs=1e-15)
        assert masses[END] == pytest.approx(ended(rows, TINY, [0], begun) / before, rel=1e-9, abs=1e-15)
        advance(rows, [tree], [byte])
    assert math.exp(tree.log_mass) == pytest.approx(covered(rows, TINY, [0], text.encode()), rel=1e-9)
    assert tree.dropped == 0


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=8), kind=st.sampled_from([0, 1, 2]), seed=st.integers(0, 3))
def test_kept_and_dropped_mass_are_one_on_every_text(
    tokenizers: dict[str, PreTrainedTokenizerFast], table_rows: Any, pieces: list[str], kind: int, seed: int
) -> None:
    tokenizer = list(tokenizers.values())[kind]
    tokens = token_bytes(tokenizer)
    rows = table_rows(len(tokens), seed)
    tree = Tree(ByteTable(tokens), [tokenizer.eos_token_id], epsilon=1e-2, most=6)
    tree.begin(rows, [0])
    for byte in "".join(pieces).encode():
        masses = tree.masses()
        assert masses.min() >= 0
        assert masses.sum() + tree.unspelled() == pytest.approx(1, abs=1e-6)
        found, _ = tree.settle(rows, byte)
        before, lost, total = tree.log_mass, tree.dropped, masses[byte] + found
        advance(rows, [tree], [byte])
        kept = math.exp(tree.log_mass - before)
        assert kept + (tree.dropped - lost) * total == pytest.approx(total, rel=1e-6)
        assert len(tree.contexts) <= 6
        assert {context.row for context in tree.contexts} == set(rows.rows), "a row is neither kept nor freed"


def test_what_epsilon_drops_is_reported_and_bounds_the_error(table_rows: Any) -> None:
    rows, text = table_rows(len(TINY), 5), b"ababba b ab"
    exact, near = tree_of(rows, TINY, epsilon=0.0, most=10**6), tree_of(rows, TINY, epsilon=0.05)
    for byte in text:
        advance(rows, [exact, near], [byte, byte])
    assert 0 < near.dropped < 1
    assert len(near.contexts) < len(exact.contexts)
    assert near.passes < exact.passes
    assert near.log_mass <= exact.log_mass
    assert math.exp(near.log_mass) >= math.exp(exact.log_mass) * (1 - near.dropped) * 0.9


def test_a_byte_that_only_dropped_contexts_can_spell_is_found_there(table_rows: Any) -> None:
    rows = table_rows(len(TINY))
    rows.table = np.full_like(rows.table, 1e-6)
    rows.table[..., TINY.index(b"aba")] = 1 - 1e-6 * len(TINY)
    tree, exact = tree_of(rows, TINY, epsilon=1e-3), tree_of(rows, TINY, epsilon=0.0, most=10**6)
    for byte in b"ab ab b":
        advance(rows, [tree, exact], [byte, byte])
    assert tree.log_mass == pytest.approx(exact.log_mass, rel=0.1)


def test_two_ids_of_one_byte_string_are_two_contexts(table_rows: Any) -> None:
    rows = table_rows(len(TINY))
    tree = tree_of(rows, TINY, epsilon=0.0)
    advance(rows, [tree], [ord("b")])
    ending = sorted(rows.rows[c.row][-1] for c in tree.contexts if not c.pending)
    assert ending == [TINY.index(b"b"), 7]


def test_special_tokens_that_end_nothing_are_the_only_mass_without_a_symbol(table_rows: Any) -> None:
    rows = table_rows(len(TINY))
    tree = tree_of(rows, TINY)
    assert tree.unspelled() == pytest.approx(float(rows.next([0])[0]))


def test_a_byte_that_no_token_spells_is_refused(table_rows: Any) -> None:
    rows = table_rows(len(TINY))
    with pytest.raises(DataError, match="gives byte 0x7a no probability here: its tokens cannot spell this text"):
        advance(rows, [tree_of(rows, TINY)], [0x7A])
    pruned = tree_of(rows, TINY, epsilon=0.3, most=3)
    for byte in b"ab ab ab ab ab":
        advance(rows, [pruned], [byte])
    with pytest.raises(DataError, match="gives byte 0x7a no probability here"):  # also after dropped ones were read
        advance(rows, [pruned], [0x7A])


def test_a_certain_model_needs_no_more_passes_than_tokens(table_rows: Any) -> None:
    rows = table_rows(len(TINY))
    rows.table = np.full_like(rows.table, 0.0)
    rows.table[..., TINY.index(b"ab")] = 1.0
    tree = tree_of(rows, TINY)
    for byte in b"ababab":
        advance(rows, [tree], [byte])
    assert (tree.passes, len(tree.contexts), tree.log_mass) == (3, 1, 0.0)
