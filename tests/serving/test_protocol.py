"""The table of fields in docs/serving.md is what the requests take."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from ensemw2s.serving.protocol import ApiError, ChatRequest, CompletionRequest
from ensemw2s.serving.settings import Limits

PAGE = (Path(__file__).parent.parent.parent / "docs" / "serving.md").read_text(encoding="utf-8")
NOT_OF_THE_BODY = {"content", "developer"}
"""What the table says of messages."""


def table() -> list[tuple[list[str], str, str]]:
    """Fields, what OpenAI does, what is done here."""
    lines = PAGE.split("| Field | OpenAI | Here |\n|---|---|---|\n")[1].split("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [(re.findall(r"`(\w+)`", first), openai, here) for first, openai, here in cells]


def fields_where(here: str) -> list[str]:
    return [name for names, _, text in table() for name in names if text.startswith(here)]


def request(name: str, value: object) -> CompletionRequest | ChatRequest:
    """The request that has such a field."""
    if name in ChatRequest.model_fields:
        return ChatRequest.model_validate({"messages": [{"role": "user", "content": "3 1"}], name: value})
    return CompletionRequest.model_validate({"prompt": "3 1", name: value})


def test_the_table_has_every_field_and_no_other():
    found = {name for names, _, _ in table() for name in names}
    assert found - NOT_OF_THE_BODY == {*CompletionRequest.model_fields, *ChatRequest.model_fields}


@pytest.mark.parametrize("name", fields_where("refused"))
def test_what_the_table_says_is_refused_is_refused_by_its_name(name):
    with pytest.raises(ValidationError) as refused:
        request(name, {"something": "that asks for more"})
    assert refused.value.errors()[0]["loc"][0] == name
    request(name, None)


@pytest.mark.parametrize("name", fields_where("taken"))
@pytest.mark.parametrize("value", [None, "a", {"a": ["b"]}, True])
def test_hints_are_taken_whatever_they_are(name, value):
    request(name, value)


def job(limits: Limits, **fields: object):
    body = CompletionRequest.model_validate({"prompt": "3 1", **fields})
    return body.job("3 1", likeliest=0, tokens=False, max_tokens=1, limits=limits)


NUMBERS = [
    ("top_k", 0, 0), ("top_k", -1, 0), ("top_p", 0, 1.0), ("min_tokens", 3, 3),
    ("logit_bias", {"7": 100}, {7: 100.0}), ("presence_penalty", -2, -2), ("repetition_penalty", 1.5, 1.5),
]  # fmt: skip
PLACES = {
    "logit_bias": "bias", "presence_penalty": "presence", "repetition_penalty": "repetition",
}  # fmt: skip


@pytest.mark.parametrize(("name", "value", "becomes"), NUMBERS)
def test_values_at_the_edge_of_what_the_table_allows_are_taken(name, value, becomes):
    assert getattr(job(Limits(), **{name: value}), PLACES.get(name, name)) == becomes
    if name == "top_p":
        assert job(Limits(), top_p=0).temperature == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [("logit_bias", {"7": 101}), ("presence_penalty", 2.1), ("frequency_penalty", -2.1), ("top_p", 1.1), ("top_k", -2)],
)
def test_values_beyond_it_are_refused_by_name(name, value):
    with pytest.raises(ValidationError) as refused:
        request(name, value)
    assert refused.value.errors()[0]["loc"][0] == name


def test_limits_that_the_table_names_are_the_defaults():
    limits = Limits()
    assert re.search(r"`limits\.n` answers of all prompts together, (\d+)", PAGE)[1] == str(limits.n)
    assert re.search(r"up to `limits\.likeliest`, (\d+)", PAGE)[1] == str(limits.likeliest)
    with pytest.raises(ApiError) as refused:
        job(limits, ensemble={"votes": limits.likeliest + 1})
    assert refused.value.param == "ensemble.votes"
