"""The endpoint on Ray Serve: replicas that die, folders that change, an end that waits for what is under way."""

import json
import shutil
import socket
import threading
import time

import openai
import pytest
import requests

pytestmark = pytest.mark.ray

PROMPT = "sort these 3 1 2"
LONG = {"model": "ensemble", "prompt": PROMPT, "max_tokens": 600, "temperature": 1.9, "seed": 3}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def endpoint(folders, module_workplace):
    copy = module_workplace.folder / "models"
    shutil.copytree(folders, copy)
    port = free_port()
    running = module_workplace.start(
        "serve", "--ensemble", copy / "ensemble", "--model", f"student={copy / 'student'}", "--port", str(port),
        "--slots", "4", "--watch", "1", "--cpus", "3",
    )  # fmt: skip
    running.wait_for_text("Ctrl-C ends it")
    running.url, running.models = f"http://127.0.0.1:{port}", copy
    return running


@pytest.fixture
def client(endpoint):
    return openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key="none", max_retries=0)


def texts(stream) -> list[str]:
    return [chunk.choices[0].text for chunk in stream]


def metric(endpoint, name: str, **labels: str) -> float:
    lines = requests.get(f"{endpoint.url}/metrics", timeout=20).text.splitlines()
    found = [one for one in lines if one.startswith(name + "{") and all(f'{k}="{v}"' for k, v in labels.items())]
    return sum(float(line.rsplit(" ", 1)[1]) for line in found)


def replicas(endpoint):
    return endpoint.descendants("ServeReplica:ensemw2s:ensemble")


def test_both_models_answer_and_a_stream_is_the_whole_in_pieces(endpoint, client):
    assert [card.id for card in client.models.list().data] == ["ensemble", "student"]
    assert requests.get(f"{endpoint.url}/readyz", timeout=20).text == "ready"
    whole = client.completions.create(**LONG)
    pieces = texts(client.completions.create(**LONG, stream=True))
    assert "".join(pieces) == whole.choices[0].text
    other = client.completions.create(**{**LONG, "model": "student"})
    assert other.choices[0].text != whole.choices[0].text
    assert metric(endpoint, "ensemw2s_completion_tokens_total") >= 3 * whole.usage.completion_tokens / 2
    assert metric(endpoint, "ensemw2s_time_to_first_token_seconds_count") >= 3


def test_clients_that_hang_up_free_their_slots(endpoint):
    for streamed in (True, False):
        for _ in range(6):
            try:
                timeout = 20 if streamed else 0.05
                body = {**LONG, "stream": streamed}
                with requests.post(f"{endpoint.url}/v1/completions", json=body, stream=True, timeout=timeout) as answer:
                    next(answer.iter_lines())
            except requests.RequestException:
                pass
    end = time.time() + 20
    while time.time() < end and metric(endpoint, "ensemw2s_running_requests") + metric(
        endpoint, "ensemw2s_waiting_requests"
    ):
        time.sleep(0.2)
    assert metric(endpoint, "ensemw2s_running_requests") + metric(endpoint, "ensemw2s_waiting_requests") == 0


def test_an_answer_goes_on_when_its_replica_dies(endpoint, client):
    wanted = "".join(texts(client.completions.create(**LONG, stream=True)))
    stream = client.completions.create(**LONG, stream=True)
    found = [next(iter(stream)).choices[0].text]
    [replica] = replicas(endpoint)
    replica.kill()
    found += texts(stream)
    assert "".join(found) == wanted


def test_a_changed_folder_is_served_and_no_request_is_lost(endpoint, client, folders):
    before = client.completions.create(**LONG).choices[0].text
    failed, answers, stop = [], [], threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            try:
                answers.append(client.completions.create(**LONG).choices[0].text)
            except openai.OpenAIError as error:
                failed.append(str(error))

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        file = endpoint.models / "ensemble" / "ensemble.json"
        tree = json.loads(file.read_text())
        tree["members"][0]["weight"], tree["members"][1]["weight"] = 0.001, 5.0
        file.write_text(json.dumps(tree))
        endpoint.wait_for_text("ensemble is up to date")
        after = client.completions.create(**LONG).choices[0].text
    finally:
        stop.set()
        asking.join()
    assert failed == []
    assert answers[0] == before  # and all that began before the change were answered
    assert after != before


def test_the_end_waits_for_what_is_under_way(endpoint, client):
    wanted = "".join(texts(client.completions.create(**LONG, stream=True)))
    stream = client.completions.create(**LONG, stream=True)
    found = [next(iter(stream)).choices[0].text]
    ended: list = []
    stopping = threading.Thread(target=lambda: ended.append(endpoint.interrupt()))
    stopping.start()
    found += texts(stream)
    stopping.join()
    assert "".join(found) == wanted
    assert ended[0].code == 0
