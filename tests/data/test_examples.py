from ensemw2s.data.examples import EXAMPLE_SCHEMA, content_key, derive_seed, example_id, example_table, folded_key


def test_content_ignores_white_space_and_not_case():
    assert content_key("sort  3 1\n2 ") == content_key("sort 3 1 2")
    assert content_key("Sort 3 1 2") != content_key("sort 3 1 2")
    assert folded_key("Sort  3 1 2") == folded_key("sort 3 1 2")


def test_content_ignores_how_unicode_composes_a_letter():
    assert content_key("caf\u00e9") == content_key("cafe\u0301")


def test_content_tells_a_power_from_a_digit():
    assert content_key("x² + 1") != content_key("x2 + 1")


def test_equal_content_gives_an_equal_id():
    assert example_id("A b") == example_id("a  B")
    assert len(example_id("a")) == 16


def test_an_id_that_is_taken_tells_case_apart():
    first = example_id("a b")
    second = example_id("A  b", {first})
    assert first == example_id("A b") != second
    assert second == example_id("A b", {first})


def test_derived_seeds_are_the_same_for_ever():
    assert derive_seed(0, "splits") == 1591506317
    assert derive_seed(0, "splits") != derive_seed(1, "splits")
    assert derive_seed(1, 23) != derive_seed(12, 3)
    assert all(0 <= derive_seed("bound", i) < 2**31 for i in range(100))


def test_a_table_of_examples_has_the_schema_even_when_everything_optional_is_null():
    row = {"id": "a", "prompt": "p", "answer": None, "difficulty": 0.0, "choices": None}
    assert example_table([row]).schema == EXAMPLE_SCHEMA
    assert example_table([]).schema == EXAMPLE_SCHEMA
