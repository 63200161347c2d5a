"""Replicas that come with the load and go with it."""

import threading
import time

import pytest
import requests
import yaml

pytestmark = [pytest.mark.ray, pytest.mark.long]


def test_a_second_replica_comes_with_the_load_and_goes_after_it(folders, workplace, free_port):
    file, port = workplace.folder / "serve.yaml", free_port()
    model = {
        "name": "ensemble", "path": str(folders / "ensemble"), "slots": 2, "max_replicas": 2, "scale_up_after": 2,
        "scale_down_after": 2,
    }  # fmt: skip
    file.write_text(yaml.safe_dump({"models": [model], "log_prompts": True}))
    running = workplace.start("serve", "--settings", file, "--port", str(port), "--cpus", "3")
    running.wait_for_text("Ctrl-C ends it")
    stop, wrong = threading.Event(), []

    def keep_asking() -> None:
        body = {"prompt": "sort these 3 1 2", "max_tokens": 400}
        while not stop.is_set():
            answer = requests.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=60)
            if not answer.ok:
                wrong.append(answer.text)

    def replicas() -> int:
        return len(running.descendants("ServeReplica:ensemw2s:ensemble"))

    assert replicas() == 1
    asking = [threading.Thread(target=keep_asking) for _ in range(8)]
    for thread in asking:
        thread.start()
    try:
        running.wait_for("a second replica", lambda: replicas() == 2)
        time.sleep(5)  # which answers, too
    finally:
        stop.set()
        for thread in asking:
            thread.join()
    running.wait_for("one replica", lambda: replicas() == 1)
    assert wrong == []
    assert running.interrupt().code == 0
    logs = [file.read_text(errors="replace") for file in workplace.ray.glob("ray/session_2*/logs/serve/*.log")]
    assert any("sort these 3 1 2" in log for log in logs), "prompts are logged where that is asked for"
