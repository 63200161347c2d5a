"""What `ensemw2s serve` refuses before anything starts, and `ensemw2s ask` on an endpoint."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
import yaml
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from typer.testing import CliRunner

from ensemw2s.cli import serving
from ensemw2s.cli.main import app
from ensemw2s.errors import ResourceError
from ensemw2s.serving import endpoint
from ensemw2s.serving.app import FRONT, api_keys, build
from ensemw2s.serving.endpoint import ask
from ensemw2s.serving.settings import ServeSettings

PROMPT = "sort these 3 1 2"


def refusal(*arguments) -> str:
    environment = {"COLUMNS": "200", "NO_COLOR": "1", "RAY_ADDRESS": None, "TERM": "dumb"}
    result = CliRunner().invoke(app, ["serve", *map(str, arguments)], env=environment)
    assert result.exit_code == 2, result.output
    return " ".join(result.stderr.split())


def test_serve_deploy_can_build_the_application_of_the_file_that_lies_here():
    tree = yaml.safe_load((Path(__file__).parents[2] / "cluster/serve.yaml").read_text())
    made = call_user_app_builder_with_args_if_necessary(build, tree["applications"][0]["args"])
    assert made._bound_deployment.name == FRONT


def test_nothing_to_host(tmp_path):
    assert "nothing to host: give --ensemble DIR" in refusal()
    assert f"model ensemble: there is no folder {tmp_path / 'none'}" in refusal("--ensemble", tmp_path / "none")
    assert "model ensemble: " in refusal("--ensemble", tmp_path)


@pytest.mark.parametrize("name", ["student", "=dir", "student="])
def test_a_model_without_a_name_or_a_folder(name):
    assert f"--model {name}: expected NAME=DIR" in refusal("--model", name)


def test_adapters_whose_base_has_moved(tmp_path):
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "/old/place"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    told = refusal("--model", f"student={tmp_path}")
    assert "model student: " in told
    assert "/old/place" in told
    assert "base_model_name_or_path" in told


def test_options_of_models_that_are_not_named_here(tmp_path):
    file = tmp_path / "serve.yaml"
    file.write_text("models: [{name: a, path: b}]")
    assert "--slots and --max-replicas go with --ensemble and --model" in refusal("--settings", file, "--slots", 4)


def test_all_mistakes_of_a_settings_file_at_once(tmp_path):
    file = tmp_path / "serve.yaml"
    file.write_text("models: [{name: a, path: b, slot: 3}]\nlimits: {n: 0}")
    told = refusal("--settings", file)
    assert "slots" in told
    assert "limits.n" in told


def test_nowhere_to_leave_an_endpoint(folders):
    assert "--detach leaves the endpoint to a cluster" in refusal("--ensemble", folders / "ensemble", "--detach")


def test_an_address_that_others_reach_needs_keys_or_a_word(folders, monkeypatch):
    monkeypatch.delenv("ENSEMW2S_API_KEYS", raising=False)
    for host in ("0.0.0.0", "::", "10.0.0.7"):
        assert "--insecure" in refusal("--ensemble", folders / "ensemble", "--host", host)
    settings = ServeSettings.model_validate({"models": [{"name": "a", "path": "b"}], "insecure": True})
    assert endpoint._checked_host(settings, "0.0.0.0") == "0.0.0.0"
    monkeypatch.setenv("ENSEMW2S_API_KEYS", "key")
    settings = settings.model_copy(update={"insecure": False})
    assert endpoint._checked_host(settings, "[::]") == "::"
    assert endpoint._checked_host(settings, "localhost") == "localhost"


def test_a_file_of_keys_without_keys(folders, tmp_path):
    keys = tmp_path / "keys"
    assert "cannot be read" in refusal("--ensemble", folders / "ensemble", "--api-keys", keys)
    keys.write_text("\n")
    assert "is empty" in refusal("--ensemble", folders / "ensemble", "--api-keys", keys)


def test_keys_come_from_the_file_and_from_the_environment(tmp_path, monkeypatch):
    keys = tmp_path / "keys"
    keys.write_text("# of the team\nfirst\n\n second \n")
    monkeypatch.setenv("ENSEMW2S_API_KEYS", "third, fourth")
    assert sorted(api_keys(str(keys))) == ["first", "fourth", "second", "third"]
    monkeypatch.delenv("ENSEMW2S_API_KEYS")
    assert api_keys(None) == []


def asked(*arguments):
    return CliRunner().invoke(app, ["ask", *arguments], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})


def test_ask_prints_the_answer(url):
    body = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 12, "temperature": 0}
    whole = requests.post(f"{url}/v1/chat/completions", json=body, timeout=20).json()["choices"][0]["message"][
        "content"
    ]
    result = asked(PROMPT, "--url", url, "--max-tokens", "12")
    assert (result.exit_code, result.stdout.rstrip("\n")) == (0, whole.rstrip("\n"))


def test_ask_says_what_the_endpoint_says(url, free_port):
    refused = asked(PROMPT, "--url", url, "--model", "gpt")
    assert refused.exit_code == 1
    assert "available: ensemble, student" in " ".join(refused.stderr.split())
    nobody = asked(PROMPT, "--url", f"http://127.0.0.1:{free_port()}")
    assert nobody.exit_code == 1
    assert "is `ensemw2s serve` running?" in " ".join(nobody.stderr.split())


class _Echo(BaseHTTPRequestHandler):
    """Answers every chat request with the path that it came to."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        content = json.dumps({"choices": [{"delta": {"content": self.path}}]})
        self.wfile.write(f"data: {content}\n\ndata: [DONE]\n\n".encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def echo():
    with ThreadingHTTPServer(("127.0.0.1", 0), _Echo) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("form", ["http://{}", "http://{}/", "http://{}/v1", "http://{}/v1/", "{}", "{}/v1"])
def test_ask_takes_an_address_in_any_form_and_reaches_this_machine_beside_a_proxy(echo, free_port, monkeypatch, form):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")  # nobody is there
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert "".join(ask(form.format(echo), {"messages": []}, None, 20.0)) == "/v1/chat/completions"


def test_chat_goes_on_in_turns_where_there_is_a_template(monkeypatch):
    cards = {"talker": True, "plain": False}
    asked = []

    def answer(url, body, key):
        asked.append([message["content"] for message in body["messages"]])
        yield from ("an", "swer")

    monkeypatch.setattr(endpoint, "model_card", lambda url, model, key: {"id": model, "chat_template": cards[model]})
    monkeypatch.setattr(endpoint, "ask", answer)
    environment = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    talk = CliRunner().invoke(
        app, ["chat", "--model", "talker", "--system", "be brief"], input="one\n\ntwo\n", env=environment
    )
    assert talk.exit_code == 0, talk.output
    assert asked[-1] == ["be brief", "one", "answer", "two", "answer"][:4]
    refused = CliRunner().invoke(app, ["chat", "--model", "plain"], input="one\n", env=environment)
    assert refused.exit_code == 2
    assert "has no chat template" in " ".join(refused.stderr.split())


@pytest.mark.parametrize("terminal", [True, False])
def test_a_message_that_is_refused_ends_no_conversation_in_a_terminal(monkeypatch, terminal):
    asked = []

    def answer(url, body, key):
        asked.append([message["content"] for message in body["messages"]])
        if asked[-1][-1] == "too long":
            raise ResourceError("the prompt is too long")
        yield "answer"

    monkeypatch.setattr(endpoint, "model_card", lambda *_: {"id": "talker", "chat_template": True})
    monkeypatch.setattr(endpoint, "ask", answer)
    monkeypatch.setattr(serving, "_is_terminal", lambda: terminal)
    talk = CliRunner().invoke(app, ["chat"], input="one\ntoo long\ntwo\n", env={"COLUMNS": "200", "TERM": "dumb"})
    assert "the prompt is too long" in talk.stderr
    assert (talk.exit_code == 0) == terminal, talk.output
    assert asked[-1] == (["one", "answer", "two"] if terminal else ["one", "answer", "too long"])
