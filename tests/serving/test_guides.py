"""Guides by themselves: whatever is chosen among what they allow has the form that was asked for."""

import json
import random
import re

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ensemw2s.errors import ModelError
from ensemw2s.serving.exchange import Form
from ensemw2s.serving.guides import Guides

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "size": {"enum": [1, 20]}},
    "required": ["name", "size"],
    "additionalProperties": False,
}
FORMS = {
    "schema": (
        Form("JSON schema", json.dumps(SCHEMA), "guided_json"),
        lambda text: json.loads(text)["size"],
    ),
    "regex": (Form("regular expression", "a{2,4}b?", "guided_regex"), re.compile("a{2,4}b?").fullmatch),
    "choices": (Form("list of choices", '["one", "or \\"two\\""]', "x"), lambda text: text in ("one", 'or "two"')),
    "grammar": (Form("grammar", 'start: "(" start ")" | "x"', "x"), re.compile(r"\(*x\)*").fullmatch),
}


@pytest.fixture(scope="module")
def guides() -> Guides:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return Guides(PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>"), 300, [256])


@pytest.mark.parametrize("name", FORMS)
def test_whatever_is_allowed_ends_in_the_form(guides, name):
    form, right = FORMS[name]
    for seed in range(4):
        guide, numbers, tokens = guides.make(form), random.Random(seed), []
        while 256 not in tokens and len(tokens) < 200:
            allowed = guide.allowed().nonzero().flatten().tolist()
            assert 257 not in allowed
            tokens.append(256 if 256 in allowed else numbers.choice(allowed))
            guide.take(tokens[-1])
        assert right(guides._tokenizer.decode(tokens[:-1])), tokens


@pytest.mark.parametrize("form", [Form("regular expression", "(", "x"), Form("grammar", "start: nothing", "x")])
def test_a_form_that_is_none_is_refused_with_the_reason(guides, form):
    with pytest.raises(ModelError, match=f"the {form.kind} cannot be used: "):
        guides.make(form)
