"""Mean lengths of examples, from a few rows or as they are given."""

import pytest

from ensemw2s.costs.lengths import lengths
from ensemw2s.models import tiny


def test_without_a_tokenizer_characters_are_counted(make_config):
    found = lengths(make_config(), 4)
    assert (found.prompt, found.answer) == (40 / 4, 81 / 4 + 1), "an answer has its prefix before it, and an end"
    assert found.origin == "of the first 4 rows, at 4 characters a token"
    assert found.whole == found.prompt + found.answer


def test_the_tokenizer_of_a_weak_base_counts_where_it_is_there(make_config):
    config = make_config()
    tokenizer = tiny.train_tokenizer(["p" * 40, "a" * 80] * 5, 64)
    tokenizer.save_pretrained(config.models.weak[0].base)
    found = lengths(config, 4)
    assert (found.prompt, found.answer) == (
        len(tokenizer.encode("p" * 40, add_special_tokens=False)) + 1,
        len(tokenizer.encode(" " + "a" * 80, add_special_tokens=False)) + 1,
    )
    assert config.models.weak[0].base in found.origin


@pytest.mark.parametrize("template", ["{prompt}", "Question: {prompt}\nAnswer:"])
def test_the_template_counts_and_answers_end_where_decoding_does(make_config, template):
    found = lengths(make_config(data__prompt_template=template, labeling__max_new_tokens=5), 1)
    assert (found.prompt, found.answer) == (40 + len(template) - len("{prompt}"), 5)


def test_the_text_of_the_template_is_what_the_tokenizer_reads(make_config):
    template = "Question: {prompt}\nAnswer:"
    config = make_config(data__prompt_template=template, data__answer_prefix="")
    words = [template.replace("{prompt}", "p" * 40), "a" * 80]
    tokenizer = tiny.train_tokenizer(words * 5, 200)
    tokenizer.save_pretrained(config.models.weak[0].base)
    found = lengths(config, 4)
    assert [found.prompt, found.answer] == [len(tokenizer.encode(text, add_special_tokens=False)) + 1 for text in words]
    assert found.prompt < 20, "words of the template are tokens of their own, as many spaces were more"


def test_given_lengths_are_taken_and_the_data_is_left_alone(make_config):
    config = make_config(data__source__paths=["/nowhere.jsonl"])
    assert lengths(config, 4, 7, 8).origin == "as given"
    assert lengths(make_config(), 4, prompt=7).prompt == 7
