"""The OpenAI API over real HTTP, with the openai client, on real engines; Ray is not part of it."""

import asyncio
import json
import re
import threading
import time
from dataclasses import replace
from typing import get_type_hints

import openai
import pytest
import requests
from openai.types.chat import ChatCompletionMessage
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as TextParams
from starlette.testclient import TestClient

from ensemw2s.serving.api import Gate, make_api
from ensemw2s.serving.fields import Message
from ensemw2s.serving.settings import Limits

PROMPT = "sort these 3 1 2"


@pytest.fixture
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def greedy(backend, prompt=PROMPT, count=12) -> str:
    held = backend.held["ensemble"]
    model, tokenizer = held.loaded.model, held.loaded.tokenizer
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    if tokenizer.bos_token_id is not None:
        ids = ids.new_tensor([[tokenizer.bos_token_id, *ids[0].tolist()]])
    out = model.generate(ids, max_new_tokens=count, do_sample=False)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_models_are_listed_with_their_experts(client):
    cards = client.models.list().data
    assert [card.id for card in cards] == ["ensemble", "student"]
    assert [(e["name"], e["alpha"]) for e in cards[0].experts] == [("round-1", 1.0), ("round-2", 2.0)]
    assert client.models.retrieve("student").id == "student"


def test_a_completion_is_what_transformers_generates(client, backend):
    found = client.completions.create(model="ensemble", prompt=PROMPT, max_tokens=12, temperature=0)
    assert found.choices[0].text == greedy(backend)
    assert found.usage.prompt_tokens + found.usage.completion_tokens == found.usage.total_tokens
    assert found.choices[0].finish_reason in ("stop", "length")


def test_a_stream_is_the_same_answer_in_pieces(client, backend):
    chunks = list(
        client.completions.create(
            model="ensemble", prompt=PROMPT, max_tokens=12, temperature=0, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == greedy(backend)
    assert len(chunks) > 3
    assert chunks[-1].usage.completion_tokens > 0
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] in ("stop", "length")


def test_a_chat_takes_one_message_where_there_is_no_template(client, backend):
    message = {"role": "user", "content": PROMPT}
    answer = client.chat.completions.create(model="ensemble", messages=[message], max_tokens=12, temperature=0)
    assert answer.choices[0].message.content == greedy(backend).removeprefix(" ")
    stream = client.chat.completions.create(
        model="ensemble", messages=[message], max_tokens=12, temperature=0, stream=True
    )
    assert "".join(c.choices[0].delta.content or "" for c in stream) == greedy(backend).removeprefix(" ")
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(model="ensemble", messages=[message, message], max_tokens=2)


def test_a_seed_gives_the_same_answers_and_n_gives_several(client):
    options = {"model": "ensemble", "prompt": PROMPT, "max_tokens": 20, "temperature": 1.5, "n": 3, "seed": -4}
    first, again = (client.completions.create(**options) for _ in range(2))
    texts = [choice.text for choice in first.choices]
    assert texts == [choice.text for choice in again.choices]
    assert len(set(texts)) == 3
    assert first.usage.prompt_tokens == client.completions.create(**{**options, "n": 1}).usage.prompt_tokens


def test_several_prompts_have_answers_in_their_order(client):
    prompts = [PROMPT, "please 9"]
    both = client.completions.create(model="ensemble", prompt=prompts, max_tokens=8, temperature=0)
    each = [client.completions.create(model="ensemble", prompt=p, max_tokens=8, temperature=0) for p in prompts]
    assert [choice.text for choice in both.choices] == [one.choices[0].text for one in each]


def test_logprobs_of_completions_and_chats(client):
    text = client.completions.create(model="ensemble", prompt=PROMPT, max_tokens=6, temperature=0, logprobs=2)
    scores = text.choices[0].logprobs
    assert len(scores.tokens) == len(scores.token_logprobs) == text.usage.completion_tokens
    for top, own in zip(scores.top_logprobs, scores.token_logprobs, strict=True):
        assert max(top.values()) == pytest.approx(own)
    message = {"role": "user", "content": PROMPT}
    chat = client.chat.completions.create(
        model="ensemble", messages=[message], max_tokens=6, temperature=0, logprobs=True, top_logprobs=3
    )
    first = chat.choices[0].logprobs.content[0]
    assert len(first.top_logprobs) == 3
    assert first.logprob == pytest.approx(first.top_logprobs[0].logprob)


def test_votes_of_every_expert_with_agreement_and_entropy(url):
    body = {"model": "ensemble", "prompt": PROMPT, "max_tokens": 5, "temperature": 0, "ensemble": {"votes": 2}}
    [choice] = requests.post(f"{url}/v1/completions", json=body, timeout=20).json()["choices"]
    for token in choice["ensemble"]["tokens"]:
        assert [vote["expert"] for vote in token["votes"]] == ["round-1", "round-2"]
        assert all(len(vote["top"]) == 2 for vote in token["votes"])
        assert token["agreement"] in (0.0, pytest.approx(0.4), pytest.approx(0.6), pytest.approx(1.0))
        agree = len({vote["top"][0]["id"] for vote in token["votes"]}) == 1
        assert (token["entropy"] == 0) == agree


def test_weights_let_one_expert_answer_alone(url, backend):
    body = {"model": "ensemble", "prompt": PROMPT, "max_tokens": 8, "temperature": 0}
    alone = {**body, "ensemble": {"weights": {"round-2": 1}, "votes": 1}}
    [choice] = requests.post(f"{url}/v1/completions", json=alone, timeout=20).json()["choices"]
    tokens = choice["ensemble"]["tokens"]
    assert all(token["agreement"] == 1 for token in tokens)
    assert [t["votes"][1]["top"][0]["id"] for t in tokens] == [t["id"] for t in tokens]


def test_a_stop_string_ends_the_answer_and_is_not_in_it(client, backend):
    whole = greedy(backend, count=30)
    stop = whole[8:10]
    found = client.completions.create(model="ensemble", prompt=PROMPT, max_tokens=30, temperature=0, stop=[stop])
    assert found.choices[0].text == whole[: whole.index(stop)]
    assert found.choices[0].finish_reason == "stop"


WRONG = [
    ({"prompt": PROMPT, "max_token": 3}, 400, "max_token"),
    ({"prompt": PROMPT, "max_tokens": 65}, 400, "allows 64"),
    ({"prompt": PROMPT, "max_tokens": "9"}, 400, "max_tokens is '9'; expected a whole number"),
    ({"prompt": PROMPT, "stream": "yes"}, 400, "stream is 'yes'; expected true or false"),
    ({"prompt": PROMPT, "temperature": "warm"}, 400, "temperature is 'warm'; expected a number"),
    ({"prompt": PROMPT, "guided_json": 5}, 400, "guided_json is 5; expected a JSON schema"),
    ({"prompt": {"a": 1}}, 400, "prompt is an object; expected a text, a list of texts"),
    ({"max_tokens": 3}, 400, "prompt is missing"),
    ({"prompt": "9 " * 6000}, 400, "12000 bytes; this endpoint allows 10000"),
    ({"prompt": PROMPT, "ensemble": {"weights": {"round-1": 0, "round-2": 0}}}, 400, "positive weight"),
    ({"prompt": PROMPT, "ensemble": {"weights": {"round-1": -1}}}, 400, "at least 0"),
    ({"prompt": PROMPT, "temperature": -1}, 400, "temperature"),
    ({"prompt": PROMPT, "n": 9}, 400, "1 to 8 answers"),
    ({"prompt": []}, 400, "1 to 8 answers"),
    ({"prompt": "9 " * 200}, 400, "allows 60"),
    ({"prompt": [1, 999]}, 400, "outside the vocabulary"),
    ({"prompt": "\ud800"}, 400, "prompt"),
    ({"prompt": PROMPT, "stop": ["a"] * 5}, 400, "stop"),
    ({"prompt": PROMPT, "stop": ""}, 400, "stop"),
    ({"prompt": PROMPT, "stop": "a" * 65}, 400, "1 to 64 characters"),
    ({"prompt": PROMPT, "logprobs": 21}, 400, "logprobs"),
    ({"prompt": PROMPT, "suffix": "x"}, 400, "not supported"),
    ({"prompt": PROMPT, "best_of": 2}, 400, "best_of: is not supported by this endpoint"),
    ({"prompt": PROMPT, "prompt_logprobs": 21}, 400, "prompt_logprobs is 21; this endpoint allows 20"),
    ({"prompt": PROMPT, "logit_bias": {"500": 100}}, 400, "no token 500"),
    ({"prompt": PROMPT, "logit_bias": {"a": 1}}, 400, "expected token ids"),
    ({"prompt": PROMPT, "presence_penalty": 3}, 400, "at most 2"),
    ({"prompt": PROMPT, "bad_words": [""]}, 400, "1 to 64 characters"),
    ({"prompt": PROMPT, "ensemble": {"weights": {"nobody": 1}}}, 400, "round-1, round-2"),
    ({"prompt": PROMPT, "model": "gpt"}, 404, "ensemble, student"),
    ({"prompt": "x" * 30_000}, 413, "20000 bytes"),
]


@pytest.mark.parametrize(("body", "status", "message"), WRONG)
@pytest.mark.parametrize("stream", [None, True])
def test_what_is_wrong_is_said_in_the_shape_of_the_api(url, body, status, message, stream):
    answer = requests.post(f"{url}/v1/completions", json={"stream": stream, **body}, timeout=20)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert message in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


FORM = {"Content-Type": "application/x-www-form-urlencoded"}
JSON = {"Content-Type": "application/json"}


def test_a_body_that_is_no_json_and_a_path_that_is_not_there(url):
    def told(data: str, headers) -> tuple[str, str | None]:
        answer = requests.post(f"{url}/v1/completions", data=data, headers=headers, timeout=20)
        assert answer.status_code == 400
        return answer.json()["error"]["message"], answer.json()["error"]["param"]

    assert told('{"prompt": "sort"}', FORM) == told("[1]", FORM)
    assert told('{"prompt": "sort"}', FORM)[0].endswith("Content-Type: application/json")
    message, param = told('{"prompt": "sort" x}', JSON)
    assert (message.startswith("the body is not JSON"), "at character 18" in message, param) == (True, True, None)
    assert told("[1]", JSON)[1] is None
    gone = requests.get(f"{url}/v1/nothing", timeout=20)
    assert (gone.status_code, gone.json()["error"]["type"]) == (404, "not_found_error")


PARAMS = [
    ({"max_completion_tokens": 65}, "max_completion_tokens", None),
    ({"messages": [{"role": "user", "content": "9 " * 200}]}, "messages", "context_length_exceeded"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content", None),
    ({"messages": [{"role": "tool", "content": "3"}]}, "messages.0.role", None),
    ({"messages": [{"role": "user"}]}, "messages.0", None),
    ({"tools": [{"type": "function"}]}, "tools", None),
    ({"reasoning_effort": "low"}, "reasoning_effort", None),
    ({"ensemble": {"votes": -1}}, "ensemble.votes", None),
]


@pytest.mark.parametrize(("wrong", "param", "code"), PARAMS)
def test_an_error_names_the_parameter_in_plain_words(url, wrong, param, code):
    body = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 4, **wrong}
    error = requests.post(f"{url}/v1/chat/completions", json=body, timeout=20).json()["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert not re.search(r"pydantic|Input should|function-|validat|Extra inputs", error["message"])


def test_a_list_of_too_many_prompts_is_refused_by_the_name_of_the_prompts(url):
    answer = requests.post(f"{url}/v1/completions", json={"prompt": [PROMPT] * 9}, timeout=20)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")


USUAL = [
    {"functions": None}, {"reasoning_effort": None}, {"max_tokens": -1}, {"max_tokens": 16.0}, {"min_p": 0},
    {"repetition_penalty": 1.0}, {"service_tier": "default"}, {"metadata": {"a": 1}}, {"top_p": 0}, {"top_k": -1},
    {"modalities": ["text"]}, {"tools": []}, {"logit_bias": {}}, {"stream_options": None}, {"stream": None},
    {"response_format": {"type": "text"}}, {"parallel_tool_calls": True}, {"user": "me"}, {"n": 1.0},
]  # fmt: skip


@pytest.mark.parametrize("option", USUAL)
def test_what_usual_clients_send_and_asks_for_nothing_is_taken(url, option):
    body = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 2, **option}
    answer = requests.post(f"{url}/v1/chat/completions", json=body, timeout=20)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("name", [*get_type_hints(ChatParams), *get_type_hints(TextParams)])
def test_every_parameter_of_the_openai_client_may_be_null(url, name):
    chat = name in get_type_hints(ChatParams)
    body = {"messages": [{"role": "user", "content": PROMPT}]} if chat else {"prompt": PROMPT}
    path = "chat/completions" if chat else "completions"
    body |= {"max_tokens": 1} | ({name: None} if name not in ("messages", "prompt") else {})
    answer = requests.post(f"{url}/v1/{path}", json=body, timeout=20)
    assert answer.status_code == 200, answer.text


def test_a_top_p_of_zero_takes_the_likeliest_token(client, backend):
    found = client.completions.create(model="ensemble", prompt=PROMPT, max_tokens=12, top_p=0)
    assert found.choices[0].text == greedy(backend)


def test_an_answer_is_taken_back_as_a_message_with_every_field_that_the_client_has():
    fields = dict.fromkeys(ChatCompletionMessage.model_fields) | {"annotations": [], "tool_calls": None}
    message = Message.model_validate({**fields, "role": "assistant", "content": "1 2 3"})
    assert message.plain() == {"role": "assistant", "content": "1 2 3"}
    assert Message.model_validate({"role": "assistant", "content": None}).plain()["content"] == ""


def test_head_is_answered_as_get_without_a_body(url):
    for path in ("/healthz", "/readyz", "/", "/v1/models", "/metrics"):
        head, get = (call(f"{url}{path}", timeout=20) for call in (requests.head, requests.get))
        assert (head.status_code, head.content) == (get.status_code, b"")
    assert requests.head(f"{url}/v1/completions", timeout=20).status_code == 405


def test_answers_have_the_number_of_their_request_and_the_version_of_the_model(url, client):
    own = requests.get(f"{url}/v1/models", headers={"x-request-id": "mine-1"}, timeout=20)
    assert own.headers["x-request-id"] == "mine-1"
    wrong = requests.post(f"{url}/v1/completions", json={}, headers={"x-request-id": "bad id"}, timeout=20)
    assert wrong.headers["x-request-id"].startswith("req_")
    found = [client.completions.create(model=name, prompt=PROMPT, max_tokens=1) for name in ("ensemble", "student")]
    assert len({one.system_fingerprint for one in found}) == 2
    assert all(re.fullmatch(r"fp_\w{16}", one.system_fingerprint) for one in found)


def test_the_sampled_token_is_among_the_top_ones_and_all_bytes_are_the_answer(client):
    chat = client.chat.completions.create(
        model="ensemble", messages=[{"role": "user", "content": PROMPT}], max_tokens=30, temperature=2, seed=5,
        logprobs=True, top_logprobs=2,
    )  # fmt: skip
    [choice] = chat.choices
    for token in choice.logprobs.content:
        assert token.token in [one.token for one in token.top_logprobs]
        scores = [one.logprob for one in token.top_logprobs]
        assert scores == sorted(scores, reverse=True)
        assert 2 <= len(scores) <= 3
    joined = bytes(byte for one in choice.logprobs.content for byte in one.bytes).decode(errors="replace")
    assert joined.removeprefix(" ") == choice.message.content.removeprefix(" ")
    text = client.completions.create(
        model="ensemble", prompt=PROMPT, max_tokens=30, temperature=2, seed=5, logprobs=5
    ).choices[0]
    for token, top in zip(text.logprobs.tokens, text.logprobs.top_logprobs, strict=True):
        assert token in top
        assert 5 <= len(top) <= 6


def test_texts_become_tokens_and_tokens_texts(url, backend):
    def post(path: str, **body):
        return requests.post(f"{url}/{path}", json=body, timeout=20)

    tokenizer = backend.held["ensemble"].loaded.tokenizer
    found = post("tokenize", prompt=PROMPT).json()
    assert (found["count"], found["max_model_len"]) == (len(found["tokens"]), 2048)
    bare = post("tokenize", prompt=PROMPT, add_special_tokens=False).json()["tokens"]
    assert bare == tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
    assert found["tokens"][-len(bare) :] == bare
    chat = post("tokenize", model="student", messages=[{"role": "user", "content": PROMPT}]).json()
    assert chat["count"] > 0
    assert post("detokenize", tokens=bare).json() == {"prompt": PROMPT}
    assert post("detokenize", tokens=[10**6]).status_code == 400
    assert post("tokenize").json()["error"]["message"] == "send either prompt or messages"
    assert post("tokenize", prompt="x", model="gpt").status_code == 404


def ids_of(url, **options) -> list[int]:
    body = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0, "return_token_ids": True, **options}
    answer = requests.post(f"{url}/v1/completions", json=body, timeout=20)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["token_ids"]


FORMS = [
    ({"guided_choice": ["sort", "1 2"]}, r"sort|1 2"),
    ({"structured_outputs": {"choice": ["9"]}}, r"9"),
    ({"guided_regex": "[0-9]( [0-9]){2}"}, r"[0-9]( [0-9]){2}"),
    ({"structured_outputs": {"regex": "so(r|t)*t"}}, r"so(r|t)*t"),
    ({"guided_grammar": 'start: "1" | "2" " " start'}, r"(2 )*1"),
]


@pytest.mark.parametrize(("form", "pattern"), FORMS)
def test_an_answer_has_the_form_that_was_asked_for(url, form, pattern):
    for seed in range(3):
        body = {"prompt": PROMPT, "max_tokens": 60, "temperature": 2, "seed": seed, **form}
        answer = requests.post(f"{url}/v1/completions", json=body, timeout=60).json()
        [choice] = answer["choices"]
        if choice["finish_reason"] == "stop":
            assert re.fullmatch(pattern, choice["text"]), choice["text"]


def test_an_answer_is_json_of_a_schema(url):
    schema = {"type": "json_schema", "json_schema": {"name": "found", "schema": {"enum": [12, 31]}}}
    body = {
        "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 60, "temperature": 2, "seed": 1,
        "response_format": schema,
    }  # fmt: skip
    [choice] = requests.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()["choices"]
    assert choice["finish_reason"] == "stop"
    assert json.loads(choice["message"]["content"]) in (12, 31)
    refused = requests.post(
        f"{url}/v1/chat/completions", json={**body, "response_format": {"type": "json_object"}}, timeout=60
    )
    assert refused.status_code == 400  # these models have no token for a brace
    assert refused.json()["error"]["param"] == "response_format"


@pytest.mark.parametrize("field", ["guided_json", "structured_outputs"])
def test_a_schema_may_be_sent_as_text(url, field):
    def answer(schema: object) -> str:
        body = {"prompt": PROMPT, "max_tokens": 60, "temperature": 2, "seed": 1}
        body[field] = {"json": schema} if field == "structured_outputs" else schema
        [choice] = requests.post(f"{url}/v1/completions", json=body, timeout=60).json()["choices"]
        return choice["text"]

    assert answer(json.dumps({"enum": [12, 31]})) == answer({"enum": [12, 31]}) in ("12", "31")


WRONG_FORMS = [
    ({"guided_json": "{"}, "guided_json", "JSON schema cannot be used"),
    ({"guided_regex": "("}, "guided_regex", "regular expression cannot be used"),
    ({"guided_grammar": "start: nothing"}, "guided_grammar", "grammar cannot be used"),
    ({"guided_json": {"type": "nonsense"}}, "guided_json", "JSON schema cannot be used"),
    ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_regex", "two forms"),
    ({"guided_regex": "a" * 40_000}, "guided_regex", "characters"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "go together"),
    ({"response_format": {"type": "yaml"}}, "response_format.type", "one of"),
]


@pytest.mark.parametrize(("form", "param", "message"), WRONG_FORMS)
def test_a_form_that_cannot_be_is_refused_by_its_name(backend, form, param, message):
    limits = Limits(max_tokens=64, prompt_tokens=60)
    answer = TestClient(make_api(backend, limits)).post("/v1/completions", json={"prompt": PROMPT, **form})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    assert message in answer.json()["error"]["message"]


def test_biases_bans_and_penalties_change_what_is_chosen(url):
    plain = ids_of(url)
    assert ids_of(url, logit_bias={str(plain[0]): -100})[0] != plain[0]
    assert set(ids_of(url, logit_bias={"7": 100})) == {7}
    assert ids_of(url, stop_token_ids=[plain[3]])[-1] == plain[3]
    assert plain[3] not in ids_of(url, stop_token_ids=[plain[3]], min_tokens=12)
    often = ids_of(url, logit_bias={"7": 2}, frequency_penalty=2, presence_penalty=2, repetition_penalty=5)
    assert len(set(often)) > len(set(plain))
    assert ids_of(url, temperature=2, min_p=1, seed=3) == plain


def test_a_token_that_ends_an_answer_by_request_is_no_part_of_its_text(url, client):
    whole = client.completions.create(model="ensemble", prompt=PROMPT, max_tokens=12, temperature=0).choices[0].text
    end = ids_of(url)[3]
    body = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0, "stop_token_ids": [end], "logprobs": 0}
    [choice] = requests.post(f"{url}/v1/completions", json=body, timeout=20).json()["choices"]
    assert choice["finish_reason"] == "stop"
    assert whole.startswith(choice["text"])
    assert len("".join(choice["logprobs"]["tokens"])) >= len(choice["text"])


def test_bad_words_do_not_come(url, client):
    whole = client.completions.create(model="ensemble", prompt=PROMPT, max_tokens=12, temperature=0, logprobs=0)
    word = next(token for token in whole.choices[0].logprobs.tokens if token.strip())
    body = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0, "bad_words": [word]}
    [choice] = requests.post(f"{url}/v1/completions", json=body, timeout=20).json()["choices"]
    assert choice["text"] != whole.choices[0].text


@pytest.mark.parametrize("count", [0, 3])
def test_an_echo_is_the_prompt_with_its_log_probabilities(client, count):
    options = {"model": "ensemble", "prompt": PROMPT, "temperature": 0, "logprobs": 2}
    answer = client.completions.create(**options, max_tokens=3).choices[0]
    found = client.completions.create(**options, max_tokens=count, echo=True)
    [choice] = found.choices
    assert choice.text == PROMPT + (answer.text if count else "")
    scores = choice.logprobs
    assert len(scores.tokens) == len(scores.text_offset) == found.usage.prompt_tokens + count
    assert (scores.token_logprobs[0], scores.top_logprobs[0]) == (None, None)
    assert all(value < 0 for value in scores.token_logprobs[1:])
    assert all(token in top for token, top in zip(scores.tokens[1:], scores.top_logprobs[1:], strict=True))
    if count:
        assert scores.token_logprobs[-3:] == pytest.approx(answer.logprobs.token_logprobs, abs=1e-4)
    pieces = list(client.completions.create(**options, max_tokens=count, echo=True, stream=True))
    assert "".join(piece.choices[0].text for piece in pieces) == choice.text
    assert [t for piece in pieces for t in piece.choices[0].logprobs.tokens] == scores.tokens


def test_a_prompt_is_scored_without_an_answer(url):
    body = {"prompt": PROMPT, "max_tokens": 0, "prompt_logprobs": 2}
    found = requests.post(f"{url}/v1/completions", json=body, timeout=20).json()
    [choice] = found["choices"]
    assert (choice["text"], choice["finish_reason"], choice["logprobs"]) == ("", "length", None)
    assert choice["prompt_logprobs"][0] is None
    assert len(choice["prompt_logprobs"]) == found["usage"]["prompt_tokens"]
    assert all(2 <= len(one) <= 3 for one in choice["prompt_logprobs"][1:])
    chat = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 0}
    answer = requests.post(f"{url}/v1/chat/completions", json=chat, timeout=20).json()
    assert answer["choices"][0]["message"]["content"] == ""


def test_weights_that_have_no_sum_are_shares(url):
    body = {
        "prompt": PROMPT,
        "max_tokens": 4,
        "ensemble": {"votes": 1, "weights": {"round-1": 1e308, "round-2": 1e308}},
    }
    answer = requests.post(f"{url}/v1/completions", json=body, timeout=20)
    assert answer.status_code == 200
    assert {t["agreement"] for t in answer.json()["choices"][0]["ensemble"]["tokens"]} <= {0.0, 0.5, 1.0}


def test_an_error_of_ours_is_told_as_a_reference_and_logged_with_the_rest(backend, served, limits, caplog, monkeypatch):
    async def broken(*_):
        raise ZeroDivisionError("/secret/path at node 10.0.0.7")

    monkeypatch.setattr(backend, "answer", broken)
    monkeypatch.setattr(backend, "metrics", broken)
    with served(make_api(backend, limits)) as url:
        answers = [
            requests.post(f"{url}/v1/completions", json={"prompt": PROMPT}, timeout=20),
            requests.get(f"{url}/metrics", timeout=20),
        ]
    for answer in answers:
        assert answer.status_code == 500
        assert "secret" not in answer.text
        [reference] = re.findall(r"reference (\w{12})", answer.json()["error"]["message"])
        assert reference in caplog.text
    assert "/secret/path" in caplog.text


def test_pages_of_other_origins_may_use_it_where_the_settings_say_so(backend, served, limits):
    preflight = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    with served(make_api(backend, limits, ["key"], cors_origins=["https://example.org"])) as url:
        answer = requests.options(f"{url}/v1/chat/completions", headers=preflight, timeout=20)
        assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (200, "https://example.org")
    with served(make_api(backend, limits)) as url:
        answer = requests.options(f"{url}/v1/chat/completions", headers=preflight, timeout=20)
        assert "Access-Control-Allow-Origin" not in answer.headers


HOSTS = [
    ("evil.example", 403), ("127.0.0.1", 200), ("localhost:8000", 200), ("[::1]:8000", 200), ("Own.Example:1", 200),
]  # fmt: skip


@pytest.mark.parametrize(("host", "status"), HOSTS)
def test_a_name_that_somebody_pointed_here_is_refused_where_there_are_no_keys(url, backend, limits, host, status):
    client = TestClient(make_api(backend, limits, hosts=["own.example"]))
    answer = client.get("/v1/models", headers={"Host": host})
    assert answer.status_code == status
    if status == 403:
        assert "no name of this endpoint" in answer.json()["error"]["message"]


def test_keys_and_declared_lengths_are_looked_at_before_the_body(backend, limits):
    api = make_api(backend, limits, ["right"], metrics_key=True)

    async def asked(path: str, **headers: str) -> dict:
        sent = []

        async def receive():
            raise AssertionError("the body is read")

        async def send(message):
            sent.append(message)

        given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        scope = {
            "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
            "headers": given, "root_path": "", "http_version": "1.1", "scheme": "http", "server": ("a", 1),
        }  # fmt: skip
        await api(scope, receive, send)
        return {"status": sent[0]["status"], **{k.decode(): v.decode() for k, v in sent[0]["headers"]}}

    told = asyncio.run(asked("/v1/completions", content_length="9"))
    assert (told["status"], told["www-authenticate"]) == (401, 'Bearer realm="ensemw2s"')
    assert asyncio.run(asked("/metrics"))["status"] == 401
    big = asyncio.run(asked("/v1/completions", authorization="Bearer right", content_length=str(10**10)))
    assert big["status"] == 413


def test_after_a_body_that_is_too_large_the_same_client_is_answered(url):
    with requests.Session() as session:
        large = session.post(f"{url}/v1/completions", json={"prompt": "x" * 3_000_000}, timeout=20)
        assert (large.status_code, large.headers["Connection"]) == (413, "close")
        assert session.post(f"{url}/v1/completions", json={"prompt": PROMPT, "max_tokens": 1}, timeout=20).ok


def test_too_many_at_a_time_are_told_when_to_come_back(url):
    answer = requests.post(f"{url}/v1/completions", json={"prompt": PROMPT, "n": 7}, timeout=20)
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")


@pytest.mark.slow
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_its_slot(url, backend, monkeypatch, stream):
    """An answer that is not streamed would never come to its end: only the hang-up frees it."""
    held = backend.held["ensemble"]
    under_way, leave = threading.Event(), held.loop.run

    async def endless(request, deliver, **options):
        await leave(replace(request, max_new_tokens=1900, eos_ids=()), deliver, **options)

    step = held.loop.engine.step

    def slow():
        under_way.set()
        time.sleep(0.01)
        return step()

    monkeypatch.setattr(held.loop, "run", endless)
    monkeypatch.setattr(held.loop.engine, "step", slow)
    body = {"prompt": PROMPT, "max_tokens": 64, "temperature": 1.9, "stream": stream, "seed": 3}
    for _ in range(4):
        under_way.clear()
        try:
            with requests.post(
                f"{url}/v1/completions", json=body, stream=True, timeout=20 if stream else 0.2
            ) as answer:
                next(answer.iter_lines())
        except requests.ReadTimeout:
            assert not stream
        assert under_way.wait(10)
    end = time.time() + 10
    while backend.held["ensemble"].loop.open and time.time() < end:
        time.sleep(0.02)
    assert backend.held["ensemble"].loop.open == 0


def test_keys_are_asked_for_where_there_are_any(backend, served, limits):
    with served(make_api(backend, limits, ["right", "other"])) as url:
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic right"}):
            answer = requests.get(f"{url}/v1/models", headers=header, timeout=20)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert openai.OpenAI(base_url=f"{url}/v1", api_key="other").models.list().data[0].id == "ensemble"
        assert requests.get(f"{url}/healthz", timeout=20).text == "ok"


def test_a_request_that_takes_too_long_ends_with_an_error(backend, served, limits):
    hurried = limits.model_copy(update={"request_seconds": 0.001})
    with served(make_api(backend, hurried)) as url:
        answer = requests.post(f"{url}/v1/completions", json={"prompt": PROMPT, "max_tokens": 64}, timeout=20)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")


def test_an_endpoint_that_goes_down_lets_nobody_in(backend, served, limits):
    gate = Gate()
    with served(make_api(backend, limits, gate=gate)) as url:
        assert requests.get(f"{url}/readyz", timeout=20).status_code == 200
        gate.draining = True
        answer = requests.post(f"{url}/v1/completions", json={"prompt": PROMPT}, timeout=20)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        assert requests.get(f"{url}/readyz", timeout=20).status_code == 503
        assert requests.get(f"{url}/healthz", timeout=20).status_code == 200


def test_the_schema_knows_the_errors(url):
    schema = requests.get(f"{url}/openapi.json", timeout=20).json()
    answers = schema["paths"]["/v1/completions"]["post"]["responses"]
    assert {"200", "400", "401", "404", "413", "429", "503", "504"} <= set(answers)
    assert "422" not in json.dumps(answers)


def test_the_description_of_the_api_loads_nothing_from_elsewhere(url):
    page = requests.get(f"{url}/docs", timeout=20).text
    assert "//" not in page, "no address of another host"
    assets = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert {asset.rsplit(".", 1)[-1] for asset in assets} == {"js", "css", "png"}
    for asset in (*assets, *re.findall(r"url: '([^']+)'", page)):
        assert requests.get(f"{url}{asset}", timeout=20).status_code == 200, asset
    assert requests.get(f"{url}/redoc", timeout=20).status_code == 404
