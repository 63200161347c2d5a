"""The OpenAI API over real HTTP, with the openai client, on real engines; Ray is not part of it."""

import json
import re
import time

import openai
import pytest
import requests

from ensemw2s.serving.api import Gate, make_api

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
    ({"prompt": PROMPT, "max_tokens": 0}, 400, "greater than or equal to 1"),
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
    ({"prompt": PROMPT, "echo": True}, 400, "not supported"),
    ({"prompt": PROMPT, "logit_bias": {"5": 100}}, 400, "not supported"),
    ({"prompt": PROMPT, "ensemble": {"weights": {"nobody": 1}}}, 400, "round-1, round-2"),
    ({"prompt": PROMPT, "model": "gpt"}, 404, "ensemble, student"),
    ({"prompt": "x" * 30_000}, 413, "20000 bytes"),
]


@pytest.mark.parametrize(("body", "status", "message"), WRONG)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_is_said_in_the_shape_of_the_api(url, body, status, message, stream):
    answer = requests.post(f"{url}/v1/completions", json={**body, "stream": stream}, timeout=20)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert message in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


def test_a_body_that_is_no_json_and_a_path_that_is_not_there(url):
    broken = requests.post(f"{url}/v1/completions", data="{", headers={"Content-Type": "application/json"}, timeout=20)
    assert (broken.status_code, "error" in broken.json()) == (400, True)
    gone = requests.get(f"{url}/v1/nothing", timeout=20)
    assert (gone.status_code, gone.json()["error"]["type"]) == (404, "not_found_error")


def test_too_many_at_a_time_are_told_when_to_come_back(url):
    answer = requests.post(f"{url}/v1/completions", json={"prompt": PROMPT, "n": 7}, timeout=20)
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")


def test_a_client_that_hangs_up_frees_its_slot(url, backend):
    body = {"prompt": PROMPT, "max_tokens": 64, "temperature": 1.9, "stream": True, "seed": 3}
    for _ in range(8):
        with requests.post(f"{url}/v1/completions", json=body, stream=True, timeout=20) as answer:
            next(answer.iter_lines())
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
